// How fast a total grows at present, and when it will meet its cap if that goes on.

import { more } from "./format.js";

const OVER_MS = 60_000;
const LEAST_MS = 5_000;

/** Readings of totals as they come, of the last minute: `add(meter, ms, total)`, the total as text. */
export class Pace {
  constructor() {
    this.readings = new Map();
  }

  add(meter, at, total) {
    const known = this.readings.get(meter) ?? [];
    // A new period, or a correction: what was before says nothing of the present.
    const before = known.length && more(known.at(-1).total, total) > 0 ? [] : known;
    before.push({ at, total });
    // The last one from before the minute stays, as the rate is from there on.
    while (before.length > 2 && before[1].at <= at - OVER_MS) before.shift();
    this.readings.set(meter, before);
  }

  /**
   * Per second, over a minute; from the buckets of the last two hours as long as the page is too young. At rest since
   * `asOf`, the latest event, if that was more than a minute ago.
   */
  rate(meter, now, hours, asOf) {
    if (!(now - asOf <= OVER_MS)) return 0;
    const readings = this.readings.get(meter) ?? [];
    const first = readings[0], last = readings.at(-1);
    if (first && now - first.at >= LEAST_MS) {
      return (1000 * more(last.total, first.total)) / (now - first.at);
    }
    const recent = hours.filter((one) => one.meter === meter && Date.parse(one.end) > now - 3_600_000);
    if (!recent.length) return 0;
    const begin = Math.min(...recent.map((one) => Date.parse(one.start)));
    const sum = recent.reduce((total, one) => total + Number(one.total), 0);
    return (1000 * sum) / Math.max(now - begin, LEAST_MS);
  }
}

/** Whether a meter only grows towards its cap, at a rate that its buckets show. */
export const isUsedUp = (meter) => meter.adds_up;

/** Seconds until the cap at this rate; null where that will not happen in this period, or means nothing. */
export function timeToCap(meter, rate, periodEnd, now) {
  if (!isUsedUp(meter) || meter.remaining === null || meter.limit.on_cap === "allow") return null;
  const remaining = Number(meter.remaining);
  if (remaining <= 0) return 0;
  if (rate <= 0) return null;
  const seconds = remaining / rate;
  return periodEnd !== null && now + seconds * 1000 > periodEnd ? null : seconds;
}
