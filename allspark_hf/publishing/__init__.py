"""Publishing a trained model: what of an output folder goes to the Hub, its card, and the way there."""
