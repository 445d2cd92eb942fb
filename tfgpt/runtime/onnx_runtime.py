"""A release's ONNX decoders on ONNX Runtime, without TensorFlow."""

from __future__ import annotations

import contextlib
import pathlib
import re

import numpy as np
import onnxruntime

from tfgpt.errors import UserError
from tfgpt.runtime.classifier_runner import OnnxClassifier
from tfgpt.runtime.huge_pages import huge_pages
from tfgpt.runtime.release_files import check_files, read_release_config
from tfgpt.runtime.runner import Decoding, Runner
from tfgpt.runtime.slots import CHUNK
from tfgpt.runtime.variants import VARIANTS, data_path, onnx_path


def open_onnx_runner(release, variant="float32", threads=0, verify=True):
    """The runner of one of a release's ONNX files.

    Args:
        release: the release directory.
        variant: of `VARIANTS`.
        threads: of the session; 0 lets ONNX Runtime choose.
        verify: compare the files with the release's manifest.

    Raises:
        UserError: if the release lacks the variant, a file is missing or not what the manifest says, or the installed
            ONNX Runtime cannot load it.
    """
    release = pathlib.Path(release)
    config = read_release_config(release)
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}, expected one of {', '.join(VARIANTS)}")
    if not (release / onnx_path(variant)).is_file():
        there = [other for other in VARIANTS if (release / onnx_path(other)).is_file()]
        if not there:
            raise UserError(f"{release / 'onnx'} holds no model, expected a release exported with the format onnx")
        raise UserError(f"{release} has no ONNX variant {variant!r}, expected one of those it has: {', '.join(there)}")
    check_files(release, ["config.json", onnx_path(variant), data_path(variant)], verify)
    # Fewer bits are bound by arithmetic, and would only open more slowly.
    with huge_pages() if variant in ("portable", "float32") else contextlib.nullcontext():
        session = open_session(release / onnx_path(variant), threads)
    runner = PortableOnnxRunner if variant == "portable" else OnnxRunner
    return runner(config, session, variant)


def open_onnx_classifier(release, threads=0, verify=True):
    """The runner of a classifier's ONNX file; arguments and errors as in `open_onnx_runner`."""
    release, path = pathlib.Path(release), onnx_path("portable")
    config = read_release_config(release, sizes=())
    if not (release / path).is_file():
        raise UserError(f"{release / 'onnx'} holds no model, expected a release exported with the format onnx")
    check_files(release, ["config.json", path], verify)
    return OnnxClassifier(config, release / "config.json", open_session(release / path, threads))


def open_session(model, threads=0, folder=None):
    """An ONNX Runtime session on the CPU.

    Args:
        model: a file, or the bytes of one whose external data is in `folder`.
        threads: as in `open_onnx_runner`.

    Raises:
        UserError: if ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, too
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        name = "the model" if folder is not None else model
        version = onnxruntime.__version__
        raise UserError(f"{name} cannot be loaded by ONNX Runtime {version}: {_reason(error)}") from error


def _reason(error):
    message = str(error).strip()
    newer = re.search(r"Opset (\d+) is under development.*for domain (\S+) is till opset (\d+)", message, re.DOTALL)
    if newer:
        found, domain, known = newer.groups()
        return f"it needs version {found} of the operator set {domain}, expected at most {known}; upgrade onnxruntime"
    return message.splitlines()[0]


class PortableOnnxRunner(Runner):
    """Runs `model.onnx`, whose cache grows and whose padding is masked."""

    name = "onnx"

    def __init__(self, config, session, variant="portable"):
        super().__init__(config)
        self.session = session
        self.cache_names = [i.name for i in session.get_inputs() if i.name.startswith("past_key_values.")]

    def step(self, token_ids, padding_mask, position_ids, cache):
        feeds = {
            "input_ids": np.asarray(token_ids, np.int64),
            "attention_mask": np.asarray(padding_mask, np.int64),
            "position_ids": np.asarray(position_ids, np.int64),
            **dict(zip(self.cache_names, cache, strict=True)),
        }
        logits, *cache = self.session.run(None, feeds)
        return logits, cache


class OnnxRunner(Runner):
    """Runs a tuned variant: each row has its own length, and the cache is one buffer that is written in place."""

    def __init__(self, config, session, variant):
        super().__init__(config)
        self.session = session
        self.name, self.precision = f"onnx/{variant}", variant
        caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
        self.cache_names = [i.name for i in caches]
        self.cache_dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[caches[0].type]

    def start(self, contexts, room, copies=1):
        return OnnxDecoding(self, contexts, max(map(len, contexts)) + room, copies)

    def logits(self, token_ids, padding_mask):
        self.check(token_ids)
        return self.cached_logits(token_ids, padding_mask, token_ids.shape[1])

    def cached_logits(self, token_ids, padding_mask, prompt_length):
        self.check(token_ids)
        real = np.asarray(padding_mask, bool)
        if not real[:, :prompt_length].any(axis=1).all():
            raise UserError(f"a row has no real token among the first {prompt_length}, expected one at least")
        contexts = [row[mask] for row, mask in zip(token_ids[:, :prompt_length], real[:, :prompt_length], strict=True)]
        decoding = OnnxDecoding(self, contexts, token_ids.shape[1], all_logits=True)
        logits = np.zeros((*token_ids.shape, self.vocabulary_size), np.float32)
        logits[:, :prompt_length][real[:, :prompt_length]] = np.concatenate(decoding.prompt_logits)
        for column in range(prompt_length, token_ids.shape[1]):
            decoding.advance(token_ids[:, column])
            logits[:, column] = decoding.logits
        return logits


class OnnxDecoding(Decoding):
    """Rows with a preallocated cache, bound to the session once: a step copies nothing and allocates nothing.

    Args:
        runner: an `OnnxRunner`.
        contexts: token id lists.
        slots: S, how many tokens a row may have in all.
        copies: as in `Runner.start`.
        all_logits: also keep the logits of all the contexts' tokens.

    Attributes:
        logits: (B, V).
        prompt_logits: with `all_logits`, an array (T, V) a context.
    """

    def __init__(self, runner, contexts, slots, copies=1, all_logits=False):
        self.runner = runner
        self.lengths = np.array([len(context) for context in contexts], np.int32)
        shape = (len(contexts), runner.num_heads, slots, runner.head_dim)
        self.cache = {name: np.zeros(shape, runner.cache_dtype) for name in runner.cache_names}
        self._prefill(contexts, all_logits)
        if copies > 1:
            self.lengths = np.repeat(self.lengths, copies)
            self.logits = np.repeat(self.logits, copies, axis=0)
            self.cache = {name: np.repeat(buffer, copies, axis=0) for name, buffer in self.cache.items()}
        self._step = None

    def advance(self, tokens, parents=None):
        if parents is not None and not np.array_equal(parents, np.arange(len(self.lengths))):
            used = self.lengths.max()
            for buffer in self.cache.values():
                buffer[:, :, :used] = buffer[parents, :, :used]
            self.lengths = self.lengths[parents]
        if self._step is None:
            self._step = Call(self.runner, self.cache, len(self.lengths), 1, 1)
        self._step.arrays["input_ids"][:, 0] = tokens
        self.logits = self._step.run(self.lengths)[:, 0]
        self.lengths = self.lengths + 1

    def _prefill(self, contexts, all_logits):
        """Reads the contexts: together while they are short, else one by one, piece by piece."""
        rows = [slice(0, len(contexts))] if max(self.lengths) <= CHUNK else []
        rows = rows or [slice(i, i + 1) for i in range(len(contexts))]
        logits, self.prompt_logits = [], []
        for row in rows:
            lengths = self.lengths[row]
            cache = {name: buffer[row] for name, buffer in self.cache.items()}
            pieces = []
            for offset in range(0, max(lengths), CHUNK):
                chunks = [context[offset : offset + CHUNK] for context in contexts[row]]
                width = max(map(len, chunks))
                call = Call(self.runner, cache, len(chunks), width, width if all_logits else 1)
                for number, chunk in enumerate(chunks):
                    call.arrays["input_ids"][number, : len(chunk)] = chunk
                ends = np.minimum(lengths - offset, width)
                if not all_logits:
                    call.arrays["logit_indices"][:, 0] = ends - 1
                pieces.append(call.run(np.full(len(chunks), offset, np.int32), ends))
            if all_logits:
                whole = np.concatenate(pieces, axis=1)
                self.prompt_logits += [whole[number, :length] for number, length in enumerate(lengths)]
                logits += [whole[number, length - 1] for number, length in enumerate(lengths)]
            else:
                logits += list(pieces[-1][:, 0])
        self.logits = np.stack(logits)


class Call:
    """The session bound to arrays that stay where they are: what is written into `arrays` is what a run reads.

    Args:
        runner: an `OnnxRunner`.
        cache: name → (B, H, S, K), read and written.
        rows: B.
        width: T, new tokens of each row.
        num_logits: M, how many of their positions get logits.
        logits: (B, M, V) that they are written to; by default a new array.
        hidden: (B, M, D) that the last hidden states are written to; by default they are not.
    """

    def __init__(self, runner, cache, rows, width, num_logits, logits=None, hidden=None):
        self.binding, self.session = runner.session.io_binding(), runner.session
        self.arrays = {
            "input_ids": np.zeros((rows, width), np.int64),
            "position_ids": np.zeros((rows, width), np.int64),
            "seqlens_k": np.zeros(rows, np.int32),
            "total_sequence_length": np.zeros((), np.int32),
            "logit_indices": np.tile(np.arange(num_logits), (rows, 1)),
        }
        self.logits = np.zeros((rows, num_logits, runner.vocabulary_size), np.float32) if logits is None else logits
        self.last_position = runner.window - 1
        for name, array in self.arrays.items():
            _bind(self.binding.bind_input, name, array)
        for name, buffer in cache.items():
            _bind(self.binding.bind_input, name, buffer)
            _bind(self.binding.bind_output, name.replace("past_key_values", "present"), buffer)
        _bind(self.binding.bind_output, "logits", self.logits)
        if hidden is not None:
            _bind(self.binding.bind_output, "last_hidden_state", hidden)

    def run(self, offsets, counts=1):
        """Reads `counts` new tokens of each row behind the `offsets` it has; gives the logits, until the next run."""
        arrays = self.arrays
        positions = offsets[:, None] + np.arange(arrays["input_ids"].shape[1])
        # Padding behind a short row may stand past the window: any position that exists will do.
        np.minimum(positions, self.last_position, out=arrays["position_ids"])
        arrays["seqlens_k"][:] = offsets + counts - 1
        arrays["total_sequence_length"][...] = arrays["seqlens_k"].max() + 1
        self.session.run_with_iobinding(self.binding)
        return self.logits


def _bind(bind, name, array):
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
