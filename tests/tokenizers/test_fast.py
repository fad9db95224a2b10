import numpy as np
import pytest
from scipy.fft import dct

from action_tokenizers import ActionTokenizer, ActionValueError, FASTTokenizer
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.errors import ActionTokenizerError
from action_tokenizers.testing import check_tokenizer
from action_tokenizers.tokenizers import fast
from tests.fakes.damage import FASTLayout, accept_allowed, accept_brute_force, accept_damage, accept_repair, recorded
from tests.fakes.workers import encode_in_threads, encode_in_workers

ACTIONS = smooth_chunks(80, 6, 3, seed=1)
PARAMS = {
    "defaults": {},
    "fine": {"scale": 100},
    "coarse": {"scale": 1, "vocab_size": 64},
    "escapes": {"scale": 30, "vocab_size": 60},
    "nothing but escapes": {"scale": 20, "vocab_size": 22},
}


@pytest.fixture(scope="module")
def demo():
    return recorded(16)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_contract(params):
    check_tokenizer(FASTTokenizer(**params), ACTIONS)


def test_the_parameters_above_do_reach_escapes():
    sizes = {name: FASTTokenizer(**params).fit(ACTIONS)._facts()["sizes"] for name, params in PARAMS.items()}
    assert sizes["coarse"]["radix"] == 0
    assert sizes["escapes"]["radix"] > 0
    assert sizes["escapes"]["alphabet"] > 1
    assert sizes["nothing but escapes"]["alphabet"] == 1


@pytest.mark.parametrize("vocab_size", [3, 10, 20])
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(vocab_size):
    tokenizer = FASTTokenizer(vocab_size=vocab_size, scale=50)
    with pytest.raises(ActionValueError, match=r"expected vocab_size >= (\d+) ids and a pad.*, got " + str(vocab_size)):
        tokenizer.fit(ACTIONS)
    assert not tokenizer.is_fitted


def test_the_smallest_vocabulary_that_the_error_names_is_enough():
    with pytest.raises(ActionValueError) as refusal:
        FASTTokenizer(vocab_size=3, scale=50).fit(ACTIONS)
    least = int(str(refusal.value).split("expected vocab_size >= ")[1].split()[0])
    tokenizer = FASTTokenizer(vocab_size=least + 1, scale=50).fit(ACTIONS)
    assert tokenizer.vocab_size <= least + 1
    with pytest.raises(ActionValueError):
        FASTTokenizer(vocab_size=least, scale=50).fit(ACTIONS)


def extreme_chunks(t: int, d: int) -> np.ndarray:
    """Chunks at the ends of the range that no smooth chunk comes near, and noise."""
    sign = np.where(np.arange(t) % 2, 1.0, -1.0)[:, None] * np.ones(d)
    step = np.where(np.arange(t) < t // 2, 1.0, -1.0)[:, None] * np.ones(d)
    noise = np.random.default_rng(0).uniform(-1, 1, (20, t, d))
    corners = np.sign(noise)
    fixed = [np.ones((t, d)), -np.ones((t, d)), sign, -sign, step, -step]
    return np.concatenate([fixed, noise, corners]).astype(np.float32)


@pytest.mark.parametrize("horizon", [1, 2, 7, 16])
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_nothing_is_clipped(params, horizon):
    scale = params.get("scale", 10)
    quiet = 0.1 * smooth_chunks(60, horizon, 3, gripper=False)
    tokenizer = FASTTokenizer(**{**params, "vocab_size": max(params.get("vocab_size", 0), 60)}, range="unit").fit(quiet)
    extreme = extreme_chunks(horizon, 3)
    layout = FASTLayout(tokenizer, horizon)
    ids = tokenizer.encode(extreme)
    coefficients = np.array([layout.read(row.tolist())[1] for row in ids]).reshape(len(ids), horizon, 3)
    exact = dct(extreme.astype(np.float64), axis=1, norm="ortho")
    assert np.abs(coefficients / scale - exact).max() <= 0.5 / scale + 1e-9
    # clamping to the range brings every chunk nearer
    error = np.linalg.norm((tokenizer.decode(ids) - extreme).reshape(len(ids), -1), axis=1)
    assert error.max() <= 0.5 / scale * np.sqrt(horizon * 3) + 1e-5


def test_a_finer_scale_errs_less_with_more_ids():
    actions = smooth_chunks(300, 16, 3)
    tokenizers = [FASTTokenizer(scale=scale, vocab_size=512, range="minmax").fit(actions) for scale in (2, 10, 50)]
    errors = [float(((tokenizer.quantize(actions) - actions) ** 2).mean()) for tokenizer in tokenizers]
    lengths = [tokenizer.length(tokenizer.encode(actions)).mean() for tokenizer in tokenizers]
    assert errors == sorted(errors, reverse=True)
    assert lengths == sorted(lengths)


def test_merges_shorten_smooth_chunks():
    actions = smooth_chunks(400, 16, 3)
    lengths = [FASTTokenizer(vocab_size=v).fit(actions).encode(actions).shape[1] for v in (128, 512, 2048)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] <= 0.7 * lengths[0]


def test_ids_spell_the_coefficients(demo):
    tokenizer = FASTTokenizer(vocab_size=1024, range="unit").fit(demo[0])
    ids = tokenizer.encode(demo[1])
    layout = FASTLayout(tokenizer, 16)
    coefficients = np.array([layout.read(row.tolist())[1] for row in ids])
    exact = 10 * dct(demo[1].clip(-1, 1).astype(np.float64), axis=1, norm="ortho").reshape(len(ids), -1)
    assert np.abs(coefficients - exact).max() <= 0.5 + 1e-9  # a tie may round either way
    np.testing.assert_array_equal(
        coefficients[np.abs(exact % 1 - 0.5) > 1e-9], np.rint(exact[np.abs(exact % 1 - 0.5) > 1e-9])
    )


def test_a_loaded_state_dict_is_what_encodes():
    first, second = (
        FASTTokenizer(scale=1, vocab_size=32, range="unit").fit(smooth_chunks(200, 8, 3, seed=seed)) for seed in (0, 1)
    )
    actions = smooth_chunks(50, 8, 3, seed=2)
    expected = first.encode(actions)
    assert expected.shape != second.encode(actions).shape or (expected != second.encode(actions)).any()
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second.encode(actions), expected)


@pytest.mark.parametrize(
    "params",
    [{"scale": value} for value in (0, -1, True, 1e9, None, "a", np.nan, np.inf)]
    + [{"vocab_size": value} for value in (0, 1, 2.5, "a", None, True)],
    ids=str,
)
def test_unusable_parameters_are_refused(params):
    tokenizer = FASTTokenizer(**params)
    with pytest.raises(ActionTokenizerError, match="expected"):
        tokenizer.fit(ACTIONS)
    assert not tokenizer.is_fitted


@pytest.mark.parametrize("params", [{"vocab_size": 1024}, {"vocab_size": 64, "scale": 20}], ids=["plain", "escapes"])
def test_damage(params, demo):
    train, held_out = demo
    tokenizer = FASTTokenizer(**params).fit(train)
    accept_damage(tokenizer, held_out, FASTLayout, 2000)
    accept_repair(tokenizer, train, held_out)
    accept_allowed(tokenizer, held_out[:500], 200)


@pytest.mark.parametrize(
    ("horizon", "dims", "params"),
    [
        (2, 1, {"scale": 4, "vocab_size": 10}),
        (2, 2, {"scale": 1, "vocab_size": 12}),
        (3, 1, {"scale": 1, "vocab_size": 9}),
    ],
    ids=["escapes", "merges over two dims", "merges over time"],
)
def test_allowed_is_brute_force(horizon, dims, params):
    tokenizer = FASTTokenizer(**params, range="unit").fit(smooth_chunks(200, horizon, dims, gripper=False))
    sizes = tokenizer._facts()["sizes"]
    assert (sizes["radix"] > 0) == (params["scale"] == 4)
    assert sizes["merges"] > 0 or params["scale"] == 4
    assert accept_brute_force(tokenizer, FASTLayout, horizon) > 20


@pytest.mark.slow
@pytest.mark.parametrize("params", [{}, {"vocab_size": 64, "scale": 20}], ids=["plain", "escapes"])
def test_acceptance(params, demo):
    train, held_out = demo
    tokenizer = FASTTokenizer(**params).fit(train)
    print(accept_damage(tokenizer, held_out, FASTLayout, 100_000))
    print(accept_repair(tokenizer, train, held_out))
    accept_allowed(tokenizer, np.tile(np.concatenate([held_out, train]), (2, 1, 1))[:10_000], 10_000)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_and_threads(demo):
    tokenizer = FASTTokenizer(vocab_size=1024).fit(demo[0])
    encode_in_workers([tokenizer], demo[1], "fork")
    encode_in_threads(tokenizer, demo[1])


PRIVATE = 0xF0000


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_tokenizer_json_gives_the_same_ids(params, tmp_path, monkeypatch):
    """Symbols become private characters; escapes are symbols like the others."""
    tokenizers = pytest.importorskip("tokenizers", reason="the judge of its own format")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    tokenizer = FASTTokenizer(**params).fit(ACTIONS)
    saved = tokenizer.save_pretrained(tmp_path)
    bpe = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    assert bpe.get_vocab_size() == tokenizer.vocab_size - 1  # the pad is ours
    merges, base = tokenizer.merges.tolist(), tokenizer._alphabet_size()

    def symbols(i: int) -> list[int]:
        return [i] if i < base else [s for part in merges[i - base] for s in symbols(part)]

    for row in tokenizer.encode(extreme_chunks(6, 3)):
        ids = row[row != tokenizer.pad_id].tolist()
        text = "".join(chr(PRIVATE + s) for i in ids for s in symbols(i))
        assert bpe.encode(text).ids == ids
        assert bpe.decode(ids) == text


def test_tokenizer_json_is_left_out_where_symbols_outnumber_private_characters(tmp_path, monkeypatch):
    tokenizer = FASTTokenizer().fit(ACTIONS)
    folder = tokenizer.save_pretrained(tmp_path)
    assert (folder / "tokenizer.json").is_file()
    monkeypatch.setattr(fast, "MOST_SYMBOLS", tokenizer._alphabet_size() - 1)
    tokenizer.save_pretrained(tmp_path)
    assert not (folder / "tokenizer.json").exists()  # nor is the one of the earlier save left
    np.testing.assert_array_equal(ActionTokenizer.from_pretrained(folder).encode(ACTIONS), tokenizer.encode(ACTIONS))


def test_loading_does_not_read_tokenizer_json(tmp_path):
    tokenizer = FASTTokenizer().fit(ACTIONS)
    folder = tokenizer.save_pretrained(tmp_path)
    (folder / "tokenizer.json").write_text("not JSON")
    np.testing.assert_array_equal(ActionTokenizer.from_pretrained(folder).encode(ACTIONS), tokenizer.encode(ACTIONS))


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_locate_tells_dim_and_frequency(params):
    tokenizer = FASTTokenizer(**params).fit(ACTIONS)
    layout = FASTLayout(tokenizer, 6)
    ids = tokenizer.encode(np.concatenate([ACTIONS[:20], extreme_chunks(6, 3)]))
    spans = set()
    for row, places in zip(ids.tolist(), tokenizer.locate(ids), strict=True):
        begin = 0
        for p, (token, place) in enumerate(zip(row, places.tolist(), strict=True)):
            if token == tokenizer.pad_id:
                assert place == [-1, -1, -1]
                continue
            span = len(layout.read(row[: p + 1])[1]) - begin
            assert place == [-1, -1 if span > 1 else begin % 3, begin // 3]
            spans.add(min(span, 2))
            begin += span
        assert begin == 18
    assert spans >= ({0, 1} if tokenizer._facts()["sizes"]["radix"] else {1})


def test_locate_of_a_single_dim_and_of_damaged_ids():
    tokenizer = FASTTokenizer(range="unit").fit(ACTIONS[..., :1])
    ids = tokenizer.encode(ACTIONS[:9, :, :1])
    places = tokenizer.locate(ids)
    assert (places[..., 1][ids != tokenizer.pad_id] == 0).all()
    broken = ids.copy()
    broken[:, 1:] = tokenizer.vocab_size
    assert (tokenizer.locate(broken)[:, 1:] == -1).all()
    np.testing.assert_array_equal(tokenizer.locate(broken)[:, 0], places[:, 0])
