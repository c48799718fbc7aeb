"""Each thing that may be wrong with a catalog, and the one line that tells it."""

import pytest

from tidegate.settings.catalog.file import CatalogError, parse_catalog

METERS = "meters: [{name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: n}}]\n"
# Where the rows below put what is wrong.
LIMIT = "plans.pro.limits.tokens"
CLAUSE = "meters[0].filter.clauses[0]"


def problems(text: str, name: str = "c.yaml") -> list[str]:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(text, name)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return str(caught.value).split("\n")


def nested(levels: int) -> str:
    text = "{key: k, operator: equals, value: 1}"
    for _ in range(levels):
        text = f"{{conjunction: and, clauses: [{text}]}}"
    return text


ELEVEN = ", ".join(["{key: k, operator: equals, value: 1}"] * 11)


def meter(rest: str, aggregation: str = "{type: count}") -> str:
    return f"meters:\n  - name: tokens\n    event_name: e\n    aggregation: {aggregation}\n    {rest}"


def condition(text: str) -> str:
    return meter(f"filter:\n      conjunction: and\n      clauses:\n        - {text}")


def limit(text: str) -> str:
    return f"{METERS}plans:\n  pro:\n    limits:\n      tokens:\n        {text}"


def plan(text: str) -> str:
    return f"{METERS}plans:\n  pro:\n    {text}"


def customer(text: str, rest: str = "{}") -> str:
    return f"{METERS}plans:\n  pro: {rest}\ncustomers:\n  acme:\n    {text}"


TEXT = "{name: a, event_name: e, aggregation: {type: sum, key: n}, numbers: text}"
TEXTS = f"meters:\n  - {TEXT}\n  - "
ONCE = "reads n of e as it stands, and the billing provider is sent it once"

BAD: list[tuple[str, int, str]] = [
    # Texts that are numbers, and what no meter reads.
    (f"{METERS}on_unmetered: drop", 2, "on_unmetered: needs count or dead_letter, got drop"),
    (meter("numbers: maybe", "{type: sum, key: n}"), 5, "meters[0].numbers: needs strict or text, got maybe"),
    (meter("numbers: text"), 5, "meters[0].numbers: needs sum, max, min or last, as count reads no numbers"),
    (
        meter("numbers: text", "{type: unique, key: n}"),
        5,
        "meters[0].numbers: needs sum, max, min or last, as unique reads",
    ),
    (
        f"{TEXTS}{{name: b, event_name: e, aggregation: {{type: max, key: n}}}}",
        2,
        f"meters[0].numbers: needs to be strict, as the meter b {ONCE}",
    ),
    (
        f"{TEXTS}{{name: b, event_name: e, aggregation: {{type: unique, key: n}}}}",
        2,
        f"meters[0].numbers: needs to be strict, as the meter b {ONCE}",
    ),
    (
        f"{TEXTS}{{name: b, event_name: e, aggregation: {{type: count}}, "
        "filter: {conjunction: and, clauses: [{key: n, operator: equals, value: x}]}}",
        2,
        f"meters[0].numbers: needs to be strict, as the meter b {ONCE}",
    ),
    # The file.
    ("", 1, "is empty; needs meters, plans and customers"),
    ("\n# nothing\n", 1, "is empty; needs meters, plans and customers"),
    ("- a", 1, "needs a mapping"),
    ("\nmeters", 2, "needs a mapping, got meters"),
    ("plans: {}", 1, "meters: is missing: at least one meter, with name and aggregation"),
    ("plans: {}\nmeters: []", 2, "meters: needs at least 1 of them"),
    ("meters:\nplans: {}", 1, "meters: needs a list, got nothing"),
    (f"{METERS}plans: [a]", 2, "plans: needs a mapping"),
    (f"{METERS}customers: yes", 2, "customers: needs a mapping, got yes"),
    (
        f"{METERS}\nplan: {{}}",
        3,
        "plan: is unknown; did you mean plans?; choices: meters, default_plan, plans",
    ),
    # YAML.
    ("meters:\n  - a: [\n", 3, "needs YAML: did not find expected node content"),
    ("meters:\n\t- a", 2, "needs YAML: found character that cannot start any token"),
    ("a: 1\nb: ü\x07", 2, "needs YAML: there is a character U+0007, which it forbids"),
    (f"{METERS}---\na: 1", 2, "a second document begins; needs one"),
    ("meters: &m\n  - a\nplans: *m", 3, "plans: has the alias *m; write the value out, or share a plan"),
    ("meters:\n  <<: 1", 2, "meters: has a merge key <<; write the values out, or share a plan"),
    ("meters:\n  - name: !!str 5", 2, "meters[0].name: has the tag !!str; write the value plainly"),
    ("meters:\n  - ok\n  - ? [a]\n    : b", 3, "meters[1]: a key needs to be text"),
    (f"a:\n {'[' * 31}\n [", 3, f"a{'[0]' * 30}: is nested deeper than 32 levels"),
    (f"{METERS}plans: {{}}\nplans: {{}}", 3, "plans: is there twice, first on line 2"),
    (f"{METERS}plans:\n  a: {{}}\n  b: {{}}\n  a:\n    x: 1", 5, "plans.a: is there twice, first on line 3"),
    (limit("cap: 1\n        cap: 1"), 7, f"{LIMIT}.cap: is there twice, first on line 6"),
    # Meters.
    ("meters:\n  - tokens", 2, "meters[0]: needs a mapping, got tokens"),
    ("meters:\n  - event_name: e\n    aggregation: {type: count}", 2, "meters[0].name: is missing"),
    (meter("unti: s"), 5, "meters[0].unti: is unknown; did you mean unit?; choices: name, event_name, agg"),
    (
        meter("unti:\n      s"),
        5,
        "meters[0].unti: is unknown; did you mean unit?; choices: name, event_name, agg",
    ),
    (meter("", "sum"), 4, "meters[0].aggregation: needs a mapping, got sum"),
    (
        meter("", "\n      type: avg"),
        5,
        "meters[0].aggregation.type: needs count, sum, max, min, last or unique, got avg",
    ),
    (meter("", "\n      type: sum"), 4, "meters[0].aggregation.key: is missing: the property that sum reads"),
    (
        meter("", "{type: last, key: }"),
        4,
        "meters[0].aggregation.key: is missing: the property that last reads",
    ),
    (meter("", "{type: count, key: n}"), 4, "meters[0].aggregation.key: needs none with count, which counts"),
    (
        meter("", f"{{type: sum, key: {'k' * 101}}}"),
        4,
        "meters[0].aggregation.key: needs 100 characters or less",
    ),
    (
        "meters:\n- event_name: e\n  aggregation: {type: count}\n  name: ''",
        4,
        "meters[0].name: needs some text",
    ),
    (
        "meters:\n- event_name: e\n  aggregation: {type: count}\n  name:",
        4,
        "meters[0].name: needs text, got nothing",
    ),
    (
        "meters:\n- event_name: e\n  aggregation: {type: count}\n  name: a b",
        4,
        "meters[0].name: needs letters, d",
    ),
    (
        f"meters:\n- event_name: e\n  aggregation: {{type: count}}\n  name: {'n' * 101}",
        4,
        "meters[0].name: needs 100 characters or less",
    ),
    (
        meter("\n  - event_name: e\n    aggregation: {type: count}\n    name: tokens"),
        8,
        "meters[1].name: needs another name; line 2 has tokens too",
    ),
    # Filters.
    (meter("filter: cached"), 5, "meters[0].filter: needs a mapping, got cached"),
    (meter("filter:\n      conjunction: and"), 5, "meters[0].filter.clauses: is missing"),
    (
        meter("filter:\n      conjunction: xor\n      clauses: [{key: k, operator: equals, value: 1}]"),
        6,
        "meters[0].filter.conjunction: needs and or or",
    ),
    (
        meter("filter: {conjunction: and, clauses: []}"),
        5,
        "meters[0].filter.clauses: needs at least 1 of them",
    ),
    (
        meter(f"filter: {{conjunction: and, clauses: [{ELEVEN}]}}"),
        5,
        "meters[0].filter.clauses: needs 10 entries or less",
    ),
    (meter(f"filter: {nested(4)}"), 5, "meters[0].filter: needs 3 levels of filters or less"),
    (condition("cached"), 8, f"{CLAUSE}: needs a mapping, got cached"),
    (condition("{operator: equals, value: 1}"), 8, f"{CLAUSE}.key: is missing"),
    (
        condition("{key: '', operator: equals, value: 1}"),
        8,
        f"{CLAUSE}.key: needs some text",
    ),
    (
        condition("{key: k, operator: is, value: 1}"),
        8,
        f"{CLAUSE}.operator: needs equals, not_",
    ),
    (condition("{key: k, operator: equals}"), 8, f"{CLAUSE}.value: is missing"),
    (
        condition("{key: k, operator: equals, value: null}"),
        8,
        f"{CLAUSE}.value: needs a number, t",
    ),
    (
        condition("{key: k, operator: equals, value: [1]}"),
        8,
        f"{CLAUSE}.value: needs a number, t",
    ),
    (
        condition("{key: k, operator: equals, value: 1e16}"),
        8,
        f"{CLAUSE}.value: needs a number of",
    ),
    (
        condition("\n          key: k\n          operator: greater_than\n          value: '5'"),
        11,
        f"{CLAUSE}.value: needs a number with greater_than, got '5'",
    ),
    (
        condition("{key: k, operator: less_than_or_equals, value: true}"),
        8,
        f"{CLAUSE}.value: needs",
    ),
    (condition("{key: k, operator: does_not_contain, value: true}"), 8, f"{CLAUSE}.value: needs text with"),
    (
        condition(f"{{key: k, operator: equals, value: {'v' * 501}}}"),
        8,
        f"{CLAUSE}.value: needs a number, tr",
    ),
    (
        condition("{key: k, operator: contains, value: 5}"),
        8,
        f"{CLAUSE}.value: needs text with contains, in quotes if it looks like a number, got 5",
    ),
    (condition("{conjunction: and}"), 8, f"{CLAUSE}.clauses: is missing"),
    # Numbers.
    (limit("cap: -3"), 6, f"{LIMIT}.cap: needs a number of 0 or more, got -3"),
    (limit("cap:\n          -3"), 7, f"{LIMIT}.cap: needs a number of 0 or more, got -3"),
    (
        limit("included: 1000000000000000.1"),
        6,
        f"{LIMIT}.included: needs a number of 10000000000000",
    ),
    (limit("cap: 1e-13"), 6, f"{LIMIT}.cap: needs 12 decimals or less, got 1e-13"),
    (limit("cap: lots"), 6, f"{LIMIT}.cap: needs a number, got lots"),
    (limit("cap: true"), 6, f"{LIMIT}.cap: needs a number, got true"),
    (limit("cap: 0100"), 6, f"{LIMIT}.cap: needs a number, got 0100"),
    (limit("cap: 0x10"), 6, f"{LIMIT}.cap: needs a number, got 0x10"),
    (limit("cap: 1_000"), 6, f"{LIMIT}.cap: needs a number, got 1_000"),
    (limit("cap: .inf"), 6, f"{LIMIT}.cap: needs a number, got .inf"),
    (limit("cap: .nan"), 6, f"{LIMIT}.cap: needs a number, got .nan"),
    (limit("cap: NaN"), 6, f"{LIMIT}.cap: needs a number, got NaN"),
    (limit("cap: \u0661"), 6, f"{LIMIT}.cap: needs a number, got \u0661"),
    (limit(f"cap: {'9' * 5000}"), 6, f"{LIMIT}.cap: needs a number, got 9999"),
    (limit("cap: 1e99999999"), 6, f"{LIMIT}.cap: needs a number, got 1e99999999"),
    (limit("cap: 1e999"), 6, f"{LIMIT}.cap: needs a number of 1000000000000000 or less"),
    (limit("cap: [1]"), 6, f"{LIMIT}.cap: needs a number"),
    (limit("grace_pct:"), 6, f"{LIMIT}.grace_pct: needs a number, got nothing"),
    (
        limit("grace_pct: 1001"),
        6,
        f"{LIMIT}.grace_pct: needs a number of 1000 or less, got 1001",
    ),
    (
        limit("hysteresis_pct: 101"),
        6,
        f"{LIMIT}.hysteresis_pct: needs a number of 100 or less",
    ),
    # Limits.
    (limit("on_cap: stop"), 6, f"{LIMIT}.on_cap: needs block, allow or warn, got stop"),
    (limit("fail: shut"), 6, f"{LIMIT}.fail: needs open or closed, got shut"),
    (limit("shadow: perhaps"), 6, f"{LIMIT}.shadow: needs true or false, got perhaps"),
    (
        limit("caps: 3"),
        6,
        f"{LIMIT}.caps: is unknown; did you mean cap?; choices: cap, on_cap, ",
    ),
    (plan("spend_cap: 100"), 4, "plans.pro.spend_cap: needs a mapping, got 100"),
    (plan("spend_cap: {limit: 1}"), 4, "plans.pro.spend_cap.limit: is unknown"),
    (plan("spend_cap:\n      cap: -1"), 5, "plans.pro.spend_cap.cap: needs "),
    (plan("spend_cap:\n      cap: 1\n      on_cap: stop"), 6, "plans.pro.spend_cap.on_cap: needs "),
    (customer("plan: pro\n    spend_cap: {fail: maybe}"), 7, "customers.acme.spend_cap.fail: needs "),
    (
        plan("limits:\n      token: {cap: 1}"),
        5,
        "plans.pro.limits.token: the meter is unknown; did you mean tokens?",
    ),
    (plan("limits: {tokens: }"), 4, f"{LIMIT}: needs a mapping, got nothing"),
    (plan("limits: []"), 4, "plans.pro.limits: needs a mapping"),
    (limit("thresholds: 80%"), 6, f"{LIMIT}.thresholds: needs a list, got 80%"),
    (
        limit("cap: 1\n        thresholds:\n          - 50%\n          - most"),
        9,
        f"{LIMIT}.thresholds[1]: needs a number, with a % if it is percent of the limit, got most",
    ),
    (
        limit("thresholds: [0]"),
        6,
        f"{LIMIT}.thresholds[0]: needs more than 0, as 0 is always reached",
    ),
    (
        limit("thresholds: [1, 0%]"),
        6,
        f"{LIMIT}.thresholds[1]: needs more than 0, as 0 is always",
    ),
    (limit("thresholds: [1, 1.0]"), 6, f"{LIMIT}.thresholds: needs each threshold once"),
    (
        limit("on_cap: allow\n        thresholds: [100, 50%]"),
        7,
        f"{LIMIT}.thresholds: needs a cap or an included quantity to be percent of",
    ),
    (
        limit(f"thresholds: {list(range(1, 34))}"),
        6,
        f"{LIMIT}.thresholds: needs 32 entries or less",
    ),
    (limit("tiers: [{up_to: 5}]"), 6, f"{LIMIT}.tiers[0].price: is missing"),
    (
        limit("tiers:\n        - price: 1\n        - price: -1"),
        8,
        f"{LIMIT}.tiers[1].price: needs a number of 0 or more",
    ),
    (limit("tiers: [{price: 1}, {price: 2}]"), 6, f"{LIMIT}.tiers: needs up_to in every tier but the last"),
    (
        limit("tiers: [{up_to: 5, price: 1}, {up_to: 5, price: 2}]"),
        6,
        f"{LIMIT}.tiers: needs up_to of more than 0 that asc",
    ),
    (limit("tiers: [{up_to: 0, price: 1}]"), 6, f"{LIMIT}.tiers: needs up_to of more than 0 that ascend"),
    # Periods and zones.
    (plan("zone: Mars/Base"), 4, "plans.pro.zone: needs an IANA zone such as Europe/Berlin, got Mars/Base"),
    (plan("zone: localtime"), 4, "plans.pro.zone: needs an IANA zone such as Europe/Berlin, got localtime"),
    (plan("period: month"), 4, "plans.pro.period: needs a mapping with its type, got month"),
    (plan("period: {every: month}"), 4, "plans.pro.period: needs a mapping with its type"),
    (plan("period:\n      type: lunar"), 4, "plans.pro.period: needs calendar, anchored, billing, never"),
    (plan("period: {type: calendar}"), 4, "plans.pro.period.every: is missing"),
    (
        plan("period:\n      type: calendar\n      every: year"),
        6,
        "plans.pro.period.every: needs month, week, day or ho",
    ),
    (plan("period: {type: never, every: day}"), 4, "plans.pro.period.every: is unknown; choices: type"),
    (
        plan("period:\n      {type: anchored, every: 0, unit: day, anchor: 2026-01-31T00:00:00Z}"),
        5,
        "plans.pro.period.every: needs a number of 1 or more, got 0",
    ),
    (
        plan("period: {type: anchored, every: 1.5, unit: day, anchor: 2026-01-31T00:00:00Z}"),
        4,
        "plans.pro.period.every: needs a whole number, got 1.5",
    ),
    (
        plan("period: {type: anchored, every: 121, unit: month, anchor: 2026-01-31T00:00:00Z}"),
        4,
        "plans.pro.period: anchored every: needs 1 to 120 months, got 121",
    ),
    *(
        (
            plan(f"period:\n      type: anchored\n      every: 1\n      unit: day\n      anchor: {anchor}"),
            8,
            "plans.pro.period.anchor: needs a time with its offset, such as 2026-01-31T00:00:00Z, got "
            + anchor,
        )
        for anchor in (
            "2026-01-31",
            "2026-01-31T00:00:00",
            "2026-02-30T00:00:00Z",
            "1769817600",
            "20260131T000000Z",
            "now",
        )
    ),
    (
        plan("period: {type: anchored, every: 1, unit: day, anchor: 2026-01-31T00:00:00.5Z}"),
        4,
        "plans.pro.period: anchor: needs whole seconds, got 2026-01-31 00:00:00.500000+00:00",
    ),
    (
        customer(
            "plan: pro\n    period:\n      type: billing\n"
            "      edges:\n      - 2026-01-31T00:00:00Z\n      - soon"
        ),
        11,
        "customers.acme.period.edges[1]: needs a time with its offset",
    ),
    (
        customer(
            "plan: pro\n    period: {type: billing, edges: [2026-01-31T00:00:00Z, 2026-01-31T00:00:00Z]}"
        ),
        7,
        "customers.acme.period: billing edges: need to ascend",
    ),
    # Plans and customers.
    (plan("price: 5"), 4, "plans.pro.price: is unknown; choices: zone, period, limits"),
    (f"{METERS}plans:\n  pro:", 3, "plans.pro: needs a mapping, got nothing"),
    (f"{METERS}plans:\n  '': {{}}", 3, "plans['']: name needs some text, got ''"),
    (f"{METERS}default_plan: pro", 2, "default_plan: the plan is unknown; choices: none"),
    (
        f"{METERS}plans: {{pro: {{}}}}\ndefault_plan: por",
        3,
        "default_plan: the plan is unknown; did you mean pro?",
    ),
    (
        f"{METERS}plans: {{pro: {{}}}}\ndefault_plan: por\ncustomers: {{acme: {{}}, beta: {{}}}}",
        3,
        "default_plan: the plan is unknown; did you mean pro?",
    ),
    (f"{METERS}default_plan: [a]", 2, "default_plan: needs text"),
    (
        f"{METERS}plans: {{b: {{period: {{type: billing}}}}}}\ndefault_plan: b",
        3,
        "default_plan: needs a plan with another period; b is billed by edges",
    ),
    (customer("plan: por"), 6, "customers.acme.plan: the plan is unknown; did you mean pro?; choices: pro"),
    (customer("zone: UTC"), 5, "customers.acme.plan: is missing: the plan, as there is no default_plan"),
    (
        customer("plan: pro\n    zone: utc+1"),
        7,
        "customers.acme.zone: needs an IANA zone such as Europe/Berlin",
    ),
    (
        customer("plan: pro", "{period: {type: billing}}"),
        5,
        "customers.acme.period: needs edges, as the period is bil",
    ),
    (
        customer("plan: pro\n    period: {type: billing}"),
        7,
        "customers.acme.period: needs edges, as the period is bil",
    ),
    (
        customer("plan: pro\n    limits: {calls: {cap: 1}}"),
        7,
        "customers.acme.limits.calls: the meter is unknown",
    ),
    (
        customer(
            "plan: pro\n    limits:\n      tokens: {cap: null}",
            "{limits: {tokens: {cap: 5, thresholds: [50%]}}}",
        ),
        8,
        "customers.acme.limits.tokens.thresholds: needs a cap or an included quantity to be percent of",
    ),
    (
        f"{METERS}plans: {{p: {{}}}}\ncustomers:\n  'a b.c': {{plan: q}}",
        4,
        "customers['a b.c'].plan: the plan is unk",
    ),
    (
        f"{METERS}plans: {{p: {{}}}}\ncustomers:\n  {'c' * 257}: {{plan: p}}",
        4,
        f"customers.{'c' * 257}: name needs 256",
    ),
    (
        f'{METERS}plans: {{p: {{}}, "a\\tb": {{}}}}',
        2,
        "plans['a\\tb']: name needs printable",
    ),
]


@pytest.mark.parametrize(("text", "line", "message"), BAD, ids=[f"{row[1]} {row[2][:60]}" for row in BAD])
def test_what_is_wrong_is_told_once_with_its_line(text: str, line: int, message: str) -> None:
    (found,) = problems(text)
    assert found.startswith(f"c.yaml:{line}: {message}")


def test_all_problems_are_told_in_the_order_of_the_file() -> None:
    """Also across parts: a wrong meter does not hide a wrong customer."""
    text = (
        "meters:\n"
        "  - {name: a, event_name: e, aggregation: {type: sum}}\n"
        "  - {name: a, event_name: e, aggregation: {type: count}, x: 1}\n"
        "customers:\n"
        "  c: {plan: q, limits: {b: {cap: 1}}}\n"
        "  d: {plan: p, limits: {a: {cap: x}, z: {}}}\n"
        "  d: {}\n"
        "plans:\n"
        "  p: {limits: {a: {cap: -1}, b: {}}}\n"
        "y: 1\n"
    )
    assert [line.split(": ")[:2] for line in problems(text)] == [
        ["c.yaml:2", "meters[0].aggregation.key"],
        ["c.yaml:3", "meters[1].name"],
        ["c.yaml:3", "meters[1].x"],
        ["c.yaml:5", "customers.c.plan"],
        ["c.yaml:5", "customers.c.limits.b"],
        ["c.yaml:6", "customers.d.limits.a.cap"],
        ["c.yaml:6", "customers.d.limits.z"],
        ["c.yaml:7", "customers.d"],
        ["c.yaml:9", "plans.p.limits.a.cap"],
        ["c.yaml:9", "plans.p.limits.b"],
        ["c.yaml:10", "y"],
    ]


def test_a_problem_has_line_column_and_path() -> None:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(limit("cap: -3"))
    (found,) = caught.value.problems
    assert (found.file, found.line, found.column, found.path) == (
        "catalog.yaml",
        6,
        14,
        f"{LIMIT}.cap",
    )


def test_a_wrong_plan_is_not_told_again_of_its_customers() -> None:
    assert len(problems(customer("plan: pro\n    limits: {tokens: {cap: 1}}", "{zone: Mars}"))) == 1


def test_nesting_without_end_is_an_error_not_a_crash() -> None:
    """libyaml's own loader ends the process here."""
    assert len(problems("[" * 1_000_000)) == 1


@pytest.mark.parametrize(
    "customers",
    [
        "{a: {billing_id: cus_1}, b: {billing_id: cus_1}}",
        "{a: {billing_id: cus_1}, cus_1: {}}",
        "{cus_1: {}, a: {billing_id: cus_1}}",
    ],
)
def test_two_customers_that_would_be_billed_as_one_are_refused(customers: str) -> None:
    meters = "[{name: t, event_name: x, aggregation: {type: count}}]"
    text = f"meters: {meters}\nplans: {{p: {{}}}}\ndefault_plan: p\ncustomers: {customers}\n"
    with pytest.raises(CatalogError, match="billed as cus_1 too"):
        parse_catalog(text)
    assert len(parse_catalog(text, is_applied=True).customers) == 2
