from hypothesis import given
from hypothesis import strategies as st

from datamodules.setting_differences import differences, first_difference

PLAIN = st.recursive(
    st.none() | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
SETTINGS = st.dictionaries(st.sampled_from("abcd"), PLAIN, max_size=4)


def test_by_hand():
    found = {"same": 1, "crf": {"iterations": 10}, "model": {"lr": 0.1, "deep": {"list": [1, 2]}}, "old": 0}
    wanted = {"new": 2, "same": 1, "crf": None, "model": {"lr": 0.2, "deep": {"list": [1, 3]}}}
    assert list(differences(found, wanted)) == [
        ("new", None, 2),
        ("crf", {"iterations": 10}, None),
        ("model.lr", 0.1, 0.2),
        ("model.deep.list", [1, 2], [1, 3]),
        ("old", 0, None),
    ]


def without_none(value):
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return value


@given(SETTINGS, SETTINGS)
def test_none_exactly_where_they_are_the_same(one, other):
    """Whichever is found and whichever wanted; a setting that is not there counts as None."""
    names = [name for name, *_ in differences(one, other)]
    assert sorted(names) == sorted(name for name, *_ in differences(other, one))
    assert (names == []) == (without_none(one) == without_none(other))


def test_the_first_difference_in_words():
    revision = {"seeds": "12", "datamodules": "34"}
    found = {"size": 320, "source": revision, "annotations_sha256": "ab", "crf": {"scale": 1}}
    for change, words in (
        ({}, ""),
        ({"size": 384}, "size 320, not 384"),
        ({"crf": {"scale": 12}}, "crf.scale 1, not 12"),
        ({"source": revision | {"seeds": "56"}}, "another revision of the code in seeds/"),
        ({"annotations_sha256": "cd"}, "annotations_sha256 (the annotations) 'ab', not 'cd'"),
    ):
        assert first_difference(found, found | change) == words
