"""A comparison of three tokenizers that nobody measured, with names that would be markup."""

from action_tokenizers.diagnostics.compare import COLUMNS, Comparison

NAMES = ("binning:bins=8,strategy=quantile", "<script>mine</script>", "_$k$")


def comparison(names=NAMES, audits=(), **changes):
    """Of two dims; a later tokenizer errs more, the first errs in the first dim alone and has no entropy."""
    rows = {}
    for i, name in enumerate(names):
        row = {column.name: (i + 1) * 10 if column.form.endswith("d") else (i + 1) / 10 for column in COLUMNS}
        row |= {"mse_per_dim": [0.01 * (i + 1), 0.01 * i], "drift_per_dim": [0.1, -0.1 * i], "tokens": 4.0 * (i + 1)}
        rows[name] = row | {"entropy": 3.0 if i else None, "fit_mse": None}
    data = {
        "source": "<b>data</b>",
        "horizon": 4,
        "action_dim": 2,
        "action_names": ["$x", "<i>y</i>"],
        "test_episodes": 3,
        "chunks": 7,
    }
    return Comparison(rows, data | changes, ("a <note>",), audits=dict(audits))
