// The hours and days that a chart shows, those without usage too, in the customer's own zone.

const HOUR = 3_600_000, DAY = 24 * HOUR;

/** The buckets of one meter as slots without gaps, the oldest first: `{start, end, total, events}`, times in ms. */
export function slots(buckets, meter, unit, count, now, zone) {
  const found = new Map();
  for (const one of buckets) {
    if (one.meter === meter) {
      const start = Date.parse(one.start);
      found.set(start, { start, end: Date.parse(one.end), total: one.total, events: one.events });
    }
  }
  const starts = unit === "hour" ? hourStarts(count, now, zone) : dayStarts(count, now, zone);
  const first = starts[0];
  for (const [i, start] of starts.entries()) {
    if (!found.has(start)) {
      found.set(start, { start, end: starts[i + 1] ?? start + (unit === "hour" ? HOUR : DAY), total: "0", events: 0 });
    }
  }
  return [...found.values()].filter((slot) => slot.start >= first).sort((one, other) => one.start - other.start);
}

/** Buckets of two answers, of each the newer one: as answers may cross, that is the one with more events. */
export function merged(known, come) {
  const found = new Map(known.map((one) => [`${one.start} ${one.meter}`, one]));
  for (const one of come) {
    const key = `${one.start} ${one.meter}`;
    if (!(found.get(key)?.events > one.events)) found.set(key, one);
  }
  return [...found.values()];
}

/** In hours since each local day began, as the flow counts them (operators/model/periods.py). */
function hourStarts(count, now, zone) {
  const days = dayStarts(Math.ceil(count / 23) + 1, now, zone);
  const found = days.flatMap((day, i) => {
    const end = days[i + 1] ?? now + 1;
    return Array.from({ length: Math.ceil((end - day) / HOUR) }, (_, hour) => day + hour * HOUR);
  });
  return found.slice(-count);
}

function dayStarts(count, now, zone) {
  const local = new Date(now + offsetAt(now, zone));
  const [year, month, day] = [local.getUTCFullYear(), local.getUTCMonth(), local.getUTCDate()];
  return Array.from({ length: count }, (_, i) => midnight(Date.UTC(year, month, day - (count - 1 - i)), zone));
}

/** When a local day begins, its midnight given as if it were UTC. Clocks may skip a midnight, or have it twice. */
function midnight(local, zone) {
  const guesses = [local - offsetAt(local - DAY, zone), local - offsetAt(local + DAY, zone)];
  return Math.min(...guesses.filter((guess) => guess + offsetAt(guess, zone) >= local));
}

const formats = new Map();

/** How far a zone is ahead of UTC at an instant, in ms. */
export function offsetAt(ms, zone) {
  if (!formats.has(zone)) formats.set(zone, formatOf(zone));
  const part = Object.fromEntries(formats.get(zone).formatToParts(ms).map((one) => [one.type, Number(one.value)]));
  const local = Date.UTC(part.year, part.month - 1, part.day, part.hour, part.minute, part.second);
  return local - Math.floor(ms / 1000) * 1000;
}

function formatOf(zone) {
  const numeric = { year: "numeric", month: "numeric", day: "numeric", hour: "numeric", minute: "numeric", second: "numeric" };
  try {
    return new Intl.DateTimeFormat("en-GB", { ...numeric, hourCycle: "h23", timeZone: zone });
  } catch {
    return new Intl.DateTimeFormat("en-GB", { ...numeric, hourCycle: "h23", timeZone: "UTC" });
  }
}
