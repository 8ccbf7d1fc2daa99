"""What the method `memory_contrastive` is made of: heads on pixels, their memory, its teacher and its losses."""
