"""Write `model_cards/`: the cards of the four families fitted on the embedded demonstrations.

A card is what `save_pretrained` writes beside a tokenizer; nothing in it is typed. The tokenizers are fitted on 80 %
of the episodes, as `action-tokenizers demo` does, and audited on the others. Learnability is left out: the probe is
trained, and the last digits of a training differ from machine to machine.

    python recipes/make_model_cards.py [--out model_cards]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from action_tokenizers import Episodes
from action_tokenizers.cli import DEMO_DATA, DEMO_HORIZON, DEMO_STRIDE
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.diagnostics.fitting import fit_all
from action_tokenizers.registry import FAMILIES, tokenizer_class

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
LICENSE = "apache-2.0"
STAGES = ("error", "smoothness", "codebook", "states", "dynamics", "bounds")


def cards() -> dict[str, str]:
    """Return the card of each family, by type name."""
    tokenizers = {name: tokenizer_class(name)(horizon=DEMO_HORIZON) for name in FAMILIES}
    fitted = fit_all(tokenizers, Episodes.load(DEMO_DATA), DEMO_HORIZON, stride=DEMO_STRIDE)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, tokenizer in fitted.tokenizers.items():
            report = audit(tokenizer, fitted.held_out, stages=STAGES)
            saved = tokenizer.save_pretrained(Path(folder) / name, audit=report, license=LICENSE)
            found[name] = (saved / "README.md").read_text(encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=CARDS, help="folder (%(default)s)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, card in cards().items():
        (out / f"{name}.md").write_text(card, encoding="utf-8")
        print(out / f"{name}.md")


if __name__ == "__main__":
    main()
