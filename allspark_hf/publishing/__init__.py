"""Publishing a trained model: its repository, card and records, and the way to the Hub."""
