"""What a repository on the Hub carries beside the weights."""
