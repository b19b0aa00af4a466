"""`python -m visionzip_ext demo`: LLaVA-1.5 with and without VisionZip, side by side.

command.py      the command line, and what happens in which order
subject.py      the model under test: a checkpoint, or `random_llava.py`
photographs.py  the images
measure.py      tokens, times, memory and answers of the two variants
report.py       progress and tables on the terminal
picture.py      which patches were kept and what became of the others
"""

from visionzip_ext.demo.command import add_arguments, run

__all__ = ["add_arguments", "run"]
