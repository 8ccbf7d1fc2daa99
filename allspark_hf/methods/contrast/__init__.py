"""Parts of the method `memory_contrastive`: heads on pixels, their memory, the teacher and the losses."""
