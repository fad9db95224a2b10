"""The two files that let `transformers.AutoProcessor` find a saved tokenizer.

`AutoProcessor.from_pretrained(folder, trust_remote_code=True)` imports the small module beside the artifact; all it
does is to call this library. transformers itself says so where the library is missing.
"""

import json

__all__ = ["MODULE", "PROCESSOR", "PROCESSOR_CLASS", "SHIM"]

PROCESSOR = "processor_config.json"
MODULE = "processing_action_tokenizer.py"
PROCESSOR_CLASS = "ActionProcessor"

_CODE = '''"""Hands transformers.AutoProcessor the action tokenizer in this folder; the code is in action-tokenizers."""

from action_tokenizers import ActionTokenizer

PASSED_ON = ("revision", "token", "cache_dir", "local_files_only")


class ActionProcessor:
    """What AutoProcessor imports; `from_pretrained` returns the tokenizer itself."""

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoProcessor"):
        """transformers calls it after the import; there is nothing to remember."""

    @classmethod
    def from_pretrained(cls, path, **options):
        return ActionTokenizer.from_pretrained(path, **{name: options[name] for name in PASSED_ON if name in options})
'''

_CONFIG = {
    "processor_class": PROCESSOR_CLASS,
    "auto_map": {"AutoProcessor": f"{MODULE.removesuffix('.py')}.{PROCESSOR_CLASS}"},
}

SHIM = {PROCESSOR: (json.dumps(_CONFIG, indent=2) + "\n").encode(), MODULE: _CODE.encode()}
