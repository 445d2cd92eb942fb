"""TensorFlow without its chatter."""

import contextlib
import os
import sys
import tempfile


def import_tensorflow():
    """Imports TensorFlow and Keras in silence.

    Some of what TensorFlow's C++ says while it loads heeds no variable, so standard error itself is turned away; if the
    import fails, what was said is shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _without_stderr():
        import keras
        import tensorflow  # noqa: F401 (imported for its effect)

        keras.utils.disable_interactive_logging()


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
