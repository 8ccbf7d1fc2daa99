"""Publishing: records of a run, the model card made of them, and the upload. Reads folders, never a Trainer."""
