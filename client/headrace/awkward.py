"""Texts on which a word cache would be wrong first; compared before one is used."""

from __future__ import annotations

from headrace.separable import Recipe

_WHITE = "\t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_LIKE_WHITE = "\u180e\u200b\u2060\ufeff\u00ad"
_MARKS = (
    "\u0301\u0308\u0327\u0338\u0345\u05b0\u0651\u093c\u094d\u0e38\u1161\u11a8\u20e3\u302a\u3099"
)
_JOINERS = "\u200c\u200d\u0600\u06dd\u0d4e\U000110bd\ufe0f\U0001f3fd\U0001f1e9"
_CONTROLS = "\0\x01\x08\x1b\x7f\x80\x9f\u202e\u2066\ufff9\ufffd\uffff\ue000\U000e0041\U0010ffff"
_ASCII = "don't 's I'LL 'tx (foo), a_b C++ 3.14 1,000 #tag @you $5 ^^ `x` ~ ##a \"'s\" x='re'"
_LATIN = "e\u0301 é É \ufb01 ß ẞ İ \u0131 Ǆ Å ① ½ ² \uff46\uff4c “q” — … € ŉ o\u0308o\u0323 Ġ ▁ ▁a"
_OTHERS = "Σ ΟΔΟΣ ς Ελλάδα ёлка עברית العربية हिन्दी ไทย 한국어 \u1112\u1161\u11ab 日本語 中 𠀀"
_EMOJI = "👩\u200d👩\u200d👧 👍🏽 🇩🇪 ☺\ufe0f"
_LONG = (100 * "x", 101 * "x", 101 * "é", "http://a.b/" + 40 * "c/", 30 * "…", 9 * "zqxj", "a" * 64)


def awkward_texts(recipe: Recipe) -> list[str]:
    """Returns some four hundred texts; those about added tokens use the tokenizer's own."""
    words = [*" ".join((_ASCII, _LATIN, _OTHERS, _EMOJI)).split(" "), *_LONG]
    texts = [
        "",
        " ",
        "  ",
        "a",
        " a",
        "a ",
        "a  b",
        "  a",
        "a   ",
        "a b c",
        "\n\n",
        " \n a",
        "a \n",
    ]
    for one in (*_WHITE, *_LIKE_WHITE, *_MARKS, *_JOINERS, *_CONTROLS):
        texts += [f"a {one}b c", f"a{one} b", one, f"x {one} y{one}"]
    for word in words:
        texts += [word, f"a {word} b {word}.", f" {word}{word}"]
    for literal in (*recipe.literals, *recipe.normalized_literals)[:12]:
        texts += [f"a{literal}b c", f"a {literal} b", f"{literal}  b", f"a {literal.upper()}"]
    return [*texts, 600 * "word ", 300 * "x y\t", " ".join(words), "".join(words), "ΟΔΟΣ ΟΔΟΣ. ΑΣ"]
