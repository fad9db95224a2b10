"""What LeRobot does with action tokenizers and with steps, written from its documented behaviour.

`release` chooses between what 0.4.4 and 0.6.2 do where they differ.
"""

import importlib
import importlib.util
import json
from abc import ABC, abstractmethod
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

OLD, NEW = (0, 4, 4), (0, 6, 2)


class TransitionKey(str, Enum):  # noqa: UP042 (a StrEnum is something else)
    OBSERVATION = "observation"
    ACTION = "action"
    COMPLEMENTARY_DATA = "complementary_data"


class ProcessorStep(ABC):
    """The contract of a step, with its defaults."""

    @abstractmethod
    def __call__(self, transition): ...

    @abstractmethod
    def transform_features(self, features): ...

    def get_config(self):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return None

    def reset(self):
        return None


class Pipeline:
    """Runs steps one after the other, saves them and makes them again."""

    def __init__(self, steps, release=NEW):
        self.steps, self.release = list(steps), release
        for step in self.steps:
            if not isinstance(step, ProcessorStep):
                raise TypeError(f"{type(step).__name__} must inherit from ProcessorStep")

    def __call__(self, transition):
        for step in self.steps:
            transition = step(transition)
        return transition

    def transform_features(self, features):
        for step in self.steps:
            features = step.transform_features(features)
        return features

    def reset(self):
        for step in self.steps:
            step.reset()

    def save_pretrained(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True)
        entries = []
        for i, step in enumerate(self.steps):
            registered = getattr(type(step), "_registry_name", None)
            path = f"{type(step).__module__}.{type(step).__name__}"
            entry = {"registry_name": registered} if registered else {"class": path}
            entry["config"] = step.get_config()
            state = step.state_dict()
            if state:
                entry["state_file"] = f"pipeline_step_{i}.safetensors"
                save_file({name: tensor.clone() for name, tensor in state.items()}, folder / entry["state_file"])
            if self.release >= NEW:
                for argument, place in step.save_artifacts(folder).items():
                    assert (folder / place).exists()
                    entry["config"][argument] = place
                    entry.setdefault("artifacts", {})[argument] = place
            entries.append(entry)
        (folder / "pipeline.json").write_text(json.dumps({"steps": entries}))

    @classmethod
    def from_pretrained(cls, folder, overrides=None, registry=None, release=NEW):
        """`registry` maps the names of registered steps to what makes them; all others are found by class path."""
        folder, overrides = Path(folder), dict(overrides or {})
        steps = []
        for entry in json.loads((folder / "pipeline.json").read_text())["steps"]:
            if "registry_name" in entry:
                key = entry["registry_name"]
                make = (registry or {})[key]
            else:
                module, key = entry["class"].rsplit(".", 1)
                make = getattr(importlib.import_module(module), key)
            config = dict(entry["config"])
            for argument in entry.get("artifacts", {}):
                config[argument] = str(folder / config[argument])
            try:
                step = make(**{**config, **overrides.pop(key, {})})
            except Exception as error:
                raise ValueError(f"could not make the step {key}: {error}") from error
            if "state_file" in entry:
                step.load_state_dict(load_file(folder / entry["state_file"]))
            steps.append(step)
        if overrides:
            raise KeyError(f"no such steps: {sorted(overrides)}")
        return cls(steps, release)


class TextTokenizer:
    """A text tokenizer as wide as PaliGemma's: one id per character, every further row a piece of its own."""

    vocab_size = 257152
    bos_token_id, eos_token_id = 2, 1
    first = 10

    def encode(self, text, add_special_tokens=True):
        """As LeRobot sets it up: special tokens are an end mark, and no beginning."""
        return [self.first + ord(char) for char in text] + [self.eos_token_id] * add_special_tokens


def auto_processor(folder):
    """Make what a saved folder names in its processor_config.json, as `AutoProcessor` does with remote code."""
    named = json.loads((Path(folder) / "processor_config.json").read_text())["auto_map"]["AutoProcessor"]
    module, name = named.split(".")
    spec = importlib.util.spec_from_file_location(module, Path(folder) / f"{module}.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return getattr(code, name).from_pretrained(folder, trust_remote_code=True, _from_auto=True)


class ActionTokenizerProcessorStep(ProcessorStep):
    """LeRobot's own step: one call of the action tokenizer per chunk, its ids among those of a text tokenizer."""

    _registry_name = "action_tokenizer_processor"

    def __init__(
        self,
        action_tokenizer_name=None,
        action_tokenizer_input_object=None,
        trust_remote_code=True,
        max_action_tokens=256,
        fast_skip_tokens=128,
        allow_truncation=True,
        release=NEW,
    ):
        if action_tokenizer_input_object is None and action_tokenizer_name is None:
            raise ValueError("a name or an object is needed")
        self.name, self.release = action_tokenizer_name, release
        self.max_action_tokens, self.fast_skip_tokens = max_action_tokens, fast_skip_tokens
        self.allow_truncation = allow_truncation
        self.tokenizer = action_tokenizer_input_object
        if self.tokenizer is None:
            self.tokenizer = auto_processor(action_tokenizer_name)
        self.by_name = action_tokenizer_input_object is None
        self.text = TextTokenizer()

    def __call__(self, transition):
        transition = transition.copy()
        action = transition.get(TransitionKey.ACTION)
        if action is None:
            return transition
        rows = [self._row(action[i : i + 1].cpu(), action.device) for i in range(len(action))]
        tokens, mask, code_mask = (torch.stack(part) for part in zip(*rows, strict=True))
        data = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        data["action.token_mask"] = mask
        data["action.tokens"] = tokens
        if self.release >= NEW:
            data["action.code_token_mask"] = code_mask
        transition[TransitionKey.COMPLEMENTARY_DATA] = data
        return transition

    def to_text(self, ids):
        """Its own inverse."""
        return self.text.vocab_size - 1 - self.fast_skip_tokens - ids

    def _row(self, chunk, device):
        ids = self.tokenizer(chunk)
        if isinstance(ids, torch.Tensor):
            ids = ids.to(device=device)
        else:
            ids = torch.tensor(ids, dtype=torch.long, device=device)
        codes = self.to_text(ids.flatten())
        before = [self.text.bos_token_id, *self.text.encode("Action: ", add_special_tokens=False)]
        row = torch.cat([torch.tensor(before), codes, torch.tensor(self.text.encode("|"))])
        is_code = torch.zeros(len(row), dtype=torch.bool)
        is_code[len(before) : len(before) + len(codes)] = True
        spare = self.max_action_tokens - len(row)
        if spare < 0 and not self.allow_truncation:
            raise ValueError(f"{len(row)} tokens exceed {self.max_action_tokens}")
        used = torch.ones(len(row), dtype=torch.bool)
        fit = (0, spare)  # a negative pad cuts off
        return [torch.nn.functional.pad(part, fit, value=0) for part in (row, used, is_code)]

    def transform_features(self, features):
        return features

    def get_config(self):
        config = {"trust_remote_code": True, "max_action_tokens": self.max_action_tokens}
        if self.release >= NEW:
            config |= {"fast_skip_tokens": self.fast_skip_tokens, "allow_truncation": self.allow_truncation}
        if self.by_name:
            config["action_tokenizer_name"] = self.name
        return config

    def save_artifacts(self, folder):
        self.tokenizer.save_pretrained(folder / "action_tokenizer")
        return {"action_tokenizer_name": "action_tokenizer"}
