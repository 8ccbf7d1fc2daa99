"""The paper's figures from any trained model: arrays computed with torch and NumPy, and drawn with matplotlib.

Computing needs no matplotlib. The arrays of a figure are saved beside its picture (`.npz`), and `DRAWERS` draws the
picture from them again:

```python
import numpy as np
from allspark_hf.figures import DRAWERS, write_figure

write_figure(np.load("figure_5.npz"), DRAWERS["5"], "redrawn", "figure_5", backgrounds=["dark"])
```
"""

from .channels import bottleneck_channels, bottleneck_pass, channels_per_class
from .charts import draw_channels_per_class, draw_curves, draw_error_by_set
from .curves import read_curves
from .errors import error_by_set
from .memory import memory_contents, refill_memory
from .pictures import draw_bottleneck_channels, draw_memory_contents, draw_predictions
from .predictions import compare_predictions, difference
from .style import STYLES, Style, require_matplotlib, write_figure


DRAWERS = {
    "1c": draw_error_by_set,
    "5": draw_bottleneck_channels,
    "6": draw_channels_per_class,
    "7": draw_memory_contents,
    "b": draw_predictions,
    "curves": draw_curves,
}

__all__ = [
    "DRAWERS",
    "STYLES",
    "Style",
    "bottleneck_channels",
    "bottleneck_pass",
    "channels_per_class",
    "compare_predictions",
    "difference",
    "draw_bottleneck_channels",
    "draw_channels_per_class",
    "draw_curves",
    "draw_error_by_set",
    "draw_memory_contents",
    "draw_predictions",
    "error_by_set",
    "memory_contents",
    "read_curves",
    "refill_memory",
    "require_matplotlib",
    "write_figure",
]
