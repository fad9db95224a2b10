"""How openpi, starVLA and UniVLA call a FAST processor, written from their documented behaviour."""

import re

import numpy as np

ACTION_TOKEN_MIN = 151665  # of Qwen2.5-VL with <robot_action_i> added
LAST_UNIVLA_ID = 151642
END_OF_ACTION = 151845


class PieceTokenizer:
    """A text tokenizer as wide as PaliGemma's whose ids survive text: one per character, else a piece `<id>`."""

    eos = 1
    first = 10
    chars = 1000

    def vocab_size(self):
        return 257152

    def encode(self, text, add_bos=False, add_eos=False):
        pieces = re.findall(r"<(\d+)>|(.)", text, re.DOTALL)
        ids = [int(number) if number else self.first + ord(char) for number, char in pieces]
        return [2] * add_bos + ids + [self.eos] * add_eos

    def decode(self, ids):
        inside = (i for i in ids if i > self.eos + 1)
        return "".join(chr(i - self.first) if i < self.chars else f"<{i}>" for i in inside)


class OpenPi:
    """openpi's FAST tokenizer of prompts: `tokenize` for training, `extract_actions` of a generation."""

    def __init__(self, tokenizer, max_len=256, skip=128):
        self.tokenizer, self.max_len, self.skip = tokenizer, max_len, skip
        self.text = PieceTokenizer()

    def tokenize(self, prompt, state, actions):
        bins = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
        prefix = self.text.encode(f"Task: {prompt.lower()}, State: {' '.join(map(str, bins))};\n", add_bos=True)
        postfix = []
        if actions is not None:
            ids = self.tokenizer(actions[None])[0]
            postfix = [
                *self.text.encode("Action: "),
                *self.to_text(ids).tolist(),
                *self.text.encode("|", add_eos=True),
            ]
        tokens = (prefix + postfix)[: self.max_len]
        loss = ([False] * len(prefix) + [True] * len(postfix))[: self.max_len]
        spare = self.max_len - len(tokens)
        return np.asarray(tokens + [0] * spare), np.asarray(loss + [False] * spare)

    def extract_actions(self, tokens, action_horizon, action_dim):
        """Through text, as openpi does."""
        text = self.text.decode(tokens.tolist())
        ids = self.to_text(self.text.encode(text.split("Action: ")[1].split("|")[0].strip()))
        return self.tokenizer.decode([ids.tolist()], time_horizon=action_horizon, action_dim=action_dim)[0]

    def to_text(self, ids):
        """Its own inverse."""
        ids = np.array(ids) if isinstance(ids, list) else ids
        return self.text.vocab_size() - 1 - self.skip - ids


class StarVLA:
    """starVLA's Qwen-FAST: `<robot_action_i>` in the text of a batch, id lists out of a batch of generations."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def set_up(self, horizon, action_dim):
        """It writes what it expects onto the tokenizer, and decodes without naming it again."""
        self.tokenizer.time_horizon = horizon
        self.tokenizer.action_dim = action_dim

    def texts(self, chunks):
        batch = self.tokenizer(np.stack(chunks, axis=0))
        return ["".join(f"<robot_action_{i}>" for i in ids) for ids in batch]

    def predict(self, generated):
        """Decode rows of language-model ids; a row without action ids becomes None."""
        last = ACTION_TOKEN_MIN + 2047
        rows = [[i - ACTION_TOKEN_MIN for i in row if ACTION_TOKEN_MIN <= i <= last] for row in generated]
        return self.tokenizer.decode([row or None for row in rows])


def robot_actions(text):
    """Return the language-model ids of a text of `<robot_action_i>`, each one token there."""
    return [ACTION_TOKEN_MIN + int(i) for i in re.findall(r"<robot_action_(\d+)>", text)]


def univla_step(tokenizer, generated, horizon, action_dim, low, high):
    """UniVLA's rollout: `generated (1, n)` torch ids counted from the end, closed by an end mark."""
    ids = LAST_UNIVLA_ID - generated[:, :-1]
    action = tokenizer.decode(ids, time_horizon=horizon, action_dim=action_dim)[0]
    action = 0.5 * (action + 1) * (high - low) + low
    action[..., -1] = np.where(action[..., -1] > 0, 1, -1)
    return action
