"""Which language a text is in: by its script, by letters that only one language has, and by its commonest words."""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = {
    "bn": (0x0980, 0x09FF),
    "gu": (0x0A80, 0x0AFF),
    "he": (0x0590, 0x05FF),
    "kn": (0x0C80, 0x0CFF),
    "ko": (0xAC00, 0xD7AF),
    "ml": (0x0D00, 0x0D7F),
    "pa": (0x0A00, 0x0A7F),
    "ta": (0x0B80, 0x0BFF),
    "te": (0x0C00, 0x0C7F),
    "th": (0x0E00, 0x0E7F),
    "el": (0x0370, 0x03FF),
    "ja": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "arabic": (0x0600, 0x06FF),
    "cyrillic": (0x0400, 0x04FF),
    "devanagari": (0x0900, 0x097F),
    "latin": (0x0041, 0x024F),
}
_WORDS = {
    "en": "the of and to in is that for it with as was on are be this by from or at you your have not an they which can "
    "will we our i a but his her has had were their if my me so all what there when who do would more about one no up "
    "out",
    "es": "el la de que y en los se del las por un para con no una su al lo como más pero sus le ya o este sí porque esta "
    "entre cuando muy sin sobre también me hasta hay donde es son está ser tu mi",
    "pt": "o a de que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu sua ou "
    "ser quando muito há nos já está eu também só pelo pela até isso você são",
    "fr": "le la les de des et en un une du que qui dans pour pas sur au avec ce il est sont par plus ne se nous vous je à "
    "aux ou mais comme son sa ses cette c'est l'on être leur été d'une d'un",
    "de": "der die das und in den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat "
    "dass sie nach wird bei einer um am sind noch wie einem über so zum war haben nur oder aber vor zur bis ich wir",
    "it": "il di che e la in un a per è una sono mi si lo ha con non del le della da al come ma se i dei nel alla gli più "
    "anche questo ci delle nella su dal quando hanno io essere o",
    "nl": "de het een van en in is dat op te zijn met voor niet aan er om ook als dan maar bij nog uit door naar heeft hebben",
    "pl": "w i na z do nie się że to jest o jak po co tak za od dla są czy przez przy ale tego oraz może być był który "
    "która które jego",
    "fi": "ja on ei että se oli hän mutta ovat kun niin myös kuin joka tai sekä mukaan voi olla vain jos ole sen tämä nyt "
    "sitten hyvin",
    "sw": "na ya wa kwa ni za katika la kuwa hii cha kama pia au yake wao lakini hiyo ili zaidi watu baada kila sana yangu "
    "wake hivyo",
    "vi": "và của là có không được cho một các trong với người những để đã này khi đến từ cũng như về tôi bạn sẽ đó ra làm",
    "sv": "och att det som en på är av för med till den har de inte om ett han men var jag sig från vi så kan när",
    "da": "og at det en den til er som på de med han af for ikke der var mig sig men et har om vi min havde",
    "ro": "și de la în a cu pe nu este care din o un să mai pentru ce sunt au că fi fost prin",
    "tr": "ve bir bu da de için ile çok ne gibi daha olarak en kadar olan ama var sonra değil",
    "id": "yang dan di dengan untuk tidak ini dari dalam akan pada juga saya ke karena ada itu adalah",
    "hi": "है के में की का को और से हैं यह पर एक नहीं कि भी लिए था जो हो इस तो ने या कर",
    "mr": "आहे आणि च्या मध्ये हे ते होते या आहेत एक नाही की तर साठी करून असे ही मी त्या होता",
    "ne": "छ र को मा छन् यो पनि हो भने लागि गर्न हुन्छ थियो गरेको एक तर यस मेरो छैन हरू",
}
_COMMON = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_DEVANAGARI = ("hi", "mr", "ne")
LATIN = tuple(language for language in _COMMON if language not in _DEVANAGARI)
"""Languages in Latin letters that are told apart."""
_LETTERS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
LOOKED_AT = 20_000
"""Characters of a text that decide."""


def detect(text: str) -> str | None:
    """The language's code of ISO 639-1; None when the text has no letters, or too few words to tell."""
    text = text[:LOOKED_AT]
    script = _script(text)
    if script is None:
        return None
    lower = text.lower()
    if script == "latin":
        return _commonest(lower, LATIN)
    if script == "devanagari":
        return _commonest(lower, _DEVANAGARI) or "hi"
    if script == "cyrillic":
        if any(letter in lower for letter in "іїєґ"):
            return "uk"
        return "ru" if any(letter in lower for letter in "ыэё") else "bg"
    if script == "arabic":
        if any(letter in lower for letter in "ٹڈڑںےھہ"):
            return "ur"
        return "fa" if any(letter in lower for letter in "پچژگ") or "ی" in lower else "ar"
    return "zh" if script == "han" else script


def _script(text: str) -> str | None:
    counts: Counter[str] = Counter()
    for character, times in Counter(text).items():
        if not character.isalpha() and not 0x0900 <= ord(character) < 0x0E80:
            continue
        for script, (first, last) in _SCRIPTS.items():
            if first <= ord(character) <= last:
                counts[script] += times
                break
    if not counts:
        return None
    # Japanese has more Chinese characters than its own in some texts, and Chinese has none of the others.
    return "ja" if counts["ja"] and counts["han"] else max(counts, key=lambda script: counts[script])


def _commonest(text: str, languages: tuple[str, ...]) -> str | None:
    words = text.split() if languages is _DEVANAGARI else _LETTERS.findall(text)
    counts = Counter(words)
    hits = {each: sum(counts[word] for word in _COMMON[each]) for each in languages}
    best = max(hits, key=lambda each: hits[each])
    return best if hits[best] else None
