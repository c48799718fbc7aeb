// Quantities, money and times as people read them. Quantities come as decimal text and stay text: none goes through a
// binary float on its way to where it is shown exactly.

const SIZES = ["", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q"];
const MINUTE = 60, HOUR = 3600, DAY = 86400;

/** `1234567.25` as `1,234,567.25`. */
export function grouped(text) {
  const [, sign, whole, fraction = ""] = /^(-?)(\d+)(\.\d+)?$/.exec(String(text)) ?? [, "", "", String(text)];
  return sign + whole.replace(/\B(?=(\d{3})+$)/g, ",") + fraction;
}

/** `1.23M`: some three digits, cut off and never rounded up to a limit. */
export function brief(text) {
  const [, sign, whole, fraction = ""] = /^(-?)(\d+)\.?(\d*)$/.exec(String(text)) ?? [, "", "0", ""];
  const size = Math.min(Math.floor((whole.length - 1) / 3), SIZES.length - 1);
  if (!size) return sign + cut(fraction ? `${whole}.${fraction}` : whole);
  return sign + cut(`${whole.slice(0, -3 * size)}.${whole.slice(-3 * size)}`) + SIZES[size];
}

/** Four characters, the point among them, without zeros at the end of a fraction; but never a part of a whole number. */
const cut = (text) => {
  const short = text.slice(0, Math.max(4, text.split(".")[0].length));
  return short.includes(".") ? short.replace(/\.?0*$/, "") : short;
};

/** How much more `a` is than `b`, as a number: near zero it is right also where both have more digits than a number. */
export function more(a, b) {
  const [one, other] = [a, b].map((text) => String(text).split("."));
  const places = Math.max(...[one, other].map(([, fraction = ""]) => fraction.length));
  const whole = ([units, fraction = ""]) => BigInt(units + fraction.padEnd(places, "0"));
  return Number(whole(one) - whole(other)) / 10 ** places;
}

const MONEY = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** `1234.5` as `1,234.50`. The exact figure stays beside it, as a title. */
export const money = (text) => MONEY.format(String(text));

/** A rate for people: `0`, `0.4`, `12`, `1,840`. */
export function rate(number) {
  if (!Number.isFinite(number) || number <= 0) return "0";
  return number < 10 ? number.toFixed(1) : grouped(BigInt(Math.round(number)));
}

/** Seconds as `38 ms`, `4.2 s`, `3 min`, `2 h 5 min`, `9 days`. */
export function span(seconds) {
  if (seconds < 0.001) return "0 ms";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < MINUTE) return `${Math.round(seconds)} s`;
  if (seconds < HOUR) return `${Math.floor(seconds / MINUTE)} min`;
  if (seconds < 2 * DAY) return joined(Math.floor(seconds / HOUR), "h", Math.floor((seconds % HOUR) / MINUTE), "min");
  return `${grouped(Math.floor(seconds / DAY))} days`;
}

const joined = (big, unit, small, smaller) => (small ? `${big} ${unit} ${small} ${smaller}` : `${big} ${unit}`);

/** How long ago, calmly: below a second it is now. */
export const ago = (seconds) => (seconds < 1 ? "now" : `${span(Math.max(seconds, 0))} ago`);

const formats = new Map();

/** A date's parts in a zone: `when(ms, "Asia/Kathmandu", "minute")` is `22 Nov, 19:25`. */
export function when(ms, zone, detail = "minute") {
  const key = `${zone} ${detail}`;
  if (!formats.has(key)) formats.set(key, formatOf(zone, detail));
  return formats.get(key).format(ms);
}

const DETAILS = {
  day: { day: "numeric", month: "short" },
  date: { weekday: "short", day: "numeric", month: "short", year: "numeric" },
  minute: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
  second: { hour: "2-digit", minute: "2-digit", second: "2-digit" },
  hour: { hour: "2-digit", minute: "2-digit" },
};

function formatOf(zone, detail) {
  const options = { ...DETAILS[detail], hourCycle: "h23" };
  try {
    return new Intl.DateTimeFormat("en-GB", { ...options, timeZone: zone });
  } catch {
    // A zone that this browser does not know.
    return new Intl.DateTimeFormat("en-GB", { ...options, timeZone: "UTC" });
  }
}

/** The reader's own zone. */
export const HERE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

/** Words from a name: `tokens_in` is `tokens in`. */
export const words = (name) => String(name).replaceAll("_", " ");
