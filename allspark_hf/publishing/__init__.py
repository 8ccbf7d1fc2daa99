"""Publishing a trained model: its record, its card, its licence."""
