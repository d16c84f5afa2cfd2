"""Personal values to plant: each of them valid by its own checksum or numbering plan, none of them anybody's."""

from __future__ import annotations

import string
from random import Random

# Whole counts of real ranges, so that any rule that knows the plan accepts them.
_AREA = (
    "201",
    "202",
    "206",
    "212",
    "213",
    "303",
    "305",
    "312",
    "404",
    "415",
    "512",
    "617",
    "702",
    "713",
    "718",
    "801",
    "847",
    "917",
    "972",
)
_US = ("({0}) {1}-{2}", "{0}-{1}-{2}", "{0}.{1}.{2}", "+1 {0} {1} {2}", "+1{0}{1}{2}", "{0} {1} {2}")
_INTERNATIONAL = (
    "+44 7400 {0:06d}", "+49 151 {0:04d}{1:04d}", "+33 6 12 {2:02d} {3:02d} {4:02d}", "+34 612 {2:02d} {3:02d} {4:02d}",
    "+31 6 1{0:07d}", "+61 412 {5:03d} {6:03d}", "+81 90-2{0:03d}-{1:04d}", "+91 98{2:02d}{0:06d}", "+39 347 {0:07d}",
)  # fmt: skip
_IBANS = {"DE": "{:018d}", "ES": "{:020d}", "FR": "{:023d}", "GB": "NWBK{:014d}", "AT": "{:016d}"}
_CARDS = (("4", 16), ("51", 16), ("52", 16), ("55", 16), ("37", 15), ("6011", 16))
_FIRST = (
    "anna",
    "ben",
    "carla",
    "david",
    "elena",
    "frank",
    "grace",
    "hugo",
    "irene",
    "jonas",
    "karen",
    "liam",
    "maria",
    "nina",
    "oscar",
    "paula",
)
_LAST = (
    "smith",
    "garcia",
    "mueller",
    "rossi",
    "dubois",
    "kowalski",
    "jensen",
    "novak",
    "silva",
    "tanaka",
    "murphy",
    "weber",
    "costa",
    "larsen",
)
_HOSTS = ("example.com", "example.org", "mail-example.net", "post.example.edu", "example.co.uk")
KINDS = ("email", "phone_us", "phone_international", "card", "iban", "ip", "api_key")


def value(random: Random, kind: str) -> str:
    """A value of one of KINDS, at least ten characters long, written in one of the usual ways."""
    made = {
        "email": email, "phone_us": phone_us, "phone_international": phone_international, "card": card, "iban": iban,
        "ip": ip, "api_key": api_key,
    }[kind]  # fmt: skip
    return made(random)


def email(random: Random) -> str:
    """An address at a host kept for examples."""
    joint = random.choice((".", "_", "-", "+"))
    return f"{random.choice(_FIRST)}{joint}{random.choice(_LAST)}{random.randrange(10**5)}@{random.choice(_HOSTS)}"


def phone_us(random: Random) -> str:
    """A number of the North American plan, in one of six ways of writing."""
    middle = random.choice("2346789") + random.choice("0234567") + random.choice("0234567")
    return random.choice(_US).format(random.choice(_AREA), middle, f"{random.randrange(10**4):04d}")


def phone_international(random: Random) -> str:
    """A mobile number with its country's prefix."""
    pattern = random.choice(_INTERNATIONAL)
    width = next((int(pattern[at + 4]) for at in [pattern.find("{0:")] if at >= 0), 2)
    numbers = [random.randrange(10**width), random.randrange(10**4), *(random.randrange(10, 99) for _ in range(3))]
    return pattern.format(*numbers, random.randrange(100, 999), random.randrange(100, 999))


def card(random: Random) -> str:
    """A payment card number with its Luhn digit, grouped or not."""
    start, length = random.choice(_CARDS)
    digits = start + "".join(random.choices(string.digits, k=length - len(start) - 1))
    total = sum(sum(divmod(int(d) * (2 - at % 2), 10)) for at, d in enumerate(reversed(digits)))
    digits += str(-total % 10)
    joint = random.choice(("", " ", "-"))
    groups = [digits[:4], digits[4:10], digits[10:]] if length == 15 else [digits[a : a + 4] for a in range(0, 16, 4)]
    return joint.join(groups)


def iban(random: Random) -> str:
    """An account number with its ISO 7064 check digits, in groups of four or not."""
    country, account = _iban_account(random)
    as_number = "".join(str(int(each, 36)) for each in f"{account}{country}00")
    whole = f"{country}{98 - int(as_number) % 97:02d}{account}"
    return whole if random.random() < 0.5 else " ".join(whole[a : a + 4] for a in range(0, len(whole), 4))


def _iban_account(random: Random) -> tuple[str, str]:
    """A country and its basic account number; where a country checks that too, with its own check digits."""
    country = random.choice(sorted(_IBANS))
    digits = [int(each) for each in str(random.randrange(10**9, 10**10))]
    if country == "ES":
        bank = [int(each) for each in f"{random.randrange(10**8):08d}"]
        first, second = _es_digit([0, 0, *bank]), _es_digit(digits)
        return country, "".join(map(str, [*bank, first, second, *digits]))
    if country == "FR":
        stem = f"{random.randrange(10**5):05d}{random.randrange(10**5):05d}0{''.join(map(str, digits))}"
        return country, f"{stem}{97 - int(stem) * 100 % 97:02d}"
    bound = int(_IBANS[country].partition("{:0")[2].rstrip("d}"))
    return country, _IBANS[country].format(random.randrange(10 ** (bound - 1), 10**bound))


def _es_digit(digits: list[int]) -> int:
    rest = 11 - sum(d * w for d, w in zip(digits, (1, 2, 4, 8, 5, 10, 9, 7, 3, 6), strict=True)) % 11
    return {10: 1, 11: 0}.get(rest, rest)


def ip(random: Random) -> str:
    """An address of version 4, one in four of version 6, outside the private ranges."""
    if random.random() < 0.25:
        return "2a02:" + ":".join(f"{random.randrange(256, 65536):x}" for _ in range(7))
    return (
        f"{random.randrange(62, 99)}.{random.randrange(10, 256)}.{random.randrange(10, 256)}.{random.randrange(1, 255)}"
    )


def api_key(random: Random) -> str:
    """A secret in the form of one of six issuers."""
    letters = string.ascii_letters + string.digits

    def some(length: int, alphabet: str = letters) -> str:
        return "".join(random.choices(alphabet, k=length))

    upper = string.ascii_uppercase + string.digits
    return random.choice(
        (
            lambda: f"sk-{some(40)}",
            lambda: f"sk-proj-{some(44)}",
            lambda: f"sk_live_{some(24)}",
            lambda: f"ghp_{some(36)}",
            lambda: f"AKIA{some(16, upper)}",
            lambda: f"AIza{some(35)}",
        )
    )()
