"""`python -m visionzip_ext tune`: trains a model's projector, or more, on few visual tokens.

command.py        the command line, and what happens in which order
conversations.py  the data: conversations about images, checked
batches.py        conversations as inputs of the model, and labels of their answers
subject.py        the model and what of it is trained
training.py       Trainer of transformers, with checkpoints that resume, and the accuracy of answers
output.py         one writer to a folder, which appears when it is whole
"""

from visionzip_ext.tune.command import add_arguments, parents, run

__all__ = ["add_arguments", "parents", "run"]
