"""TensorFlow without its chatter and its hoards."""

import contextlib
import os
import sys
import tempfile


def import_tensorflow(return_memory=False):
    """Imports TensorFlow and Keras in silence.

    Some of what TensorFlow's C++ says while it loads heeds no variable, so standard error itself is turned away; if the
    import fails, what was said is shown.

    Args:
        return_memory: give memory back when tensors go, which a process that traces and writes a model once needs more
            than the pool that a training step takes its tensors from.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if return_memory and "tensorflow" not in sys.modules:  # else it is too late, and only child processes would see it
        os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    with _without_stderr(), _without_matplotlib():
        import keras
        import tensorflow  # noqa: F401 (imported for its effect)

        keras.utils.disable_interactive_logging()


@contextlib.contextmanager
def _without_matplotlib():
    """Keras imports it for its galleries of images, which takes 0.4 s and 30 MB."""
    loaded = "matplotlib" in sys.modules
    if not loaded:
        sys.modules["matplotlib"] = None  # what Keras takes for "not installed"
    try:
        yield
    finally:
        if not loaded:
            del sys.modules["matplotlib"]


@contextlib.contextmanager
def _without_stderr():
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
