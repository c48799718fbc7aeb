// One customer: what is used now of each limit, by hour and day, the live bill, and what was told. As it changes.

import { customerPath, isAddressable, Problem } from "./api.js";
import { merged, slots } from "./buckets.js";
import "./chart.js";
import { ago, grouped, span, when, words } from "./format.js";
import { isUsedUp, Pace, timeToCap } from "./pace.js";
import { follow } from "./stream.js";
import { alertList, banner, bar, chip, connection, empty, failed, html, keyed, loading, name, nothing, number, panel, price, unmeteredList } from "./view.js";

const AGAIN_MS = 2000;
const SPANS = { hour: { count: 48, title: "Last 48 hours" }, day: { count: 31, title: "Last 31 days" } };

/** Follows one customer from `start` to `stop`; `changed` is called when `view` has something new. */
export class CustomerPage {
  constructor(api, customer, { changed, refused, raise = null, isOperator = false }) {
    Object.assign(this, { api, customer, changed, refused, raise, isOperator });
    this.statement = [];
    this.state = "connecting";
    this.usage = this.problem = null;
    this.hours = this.days = [];
    this.isLoaded = false;
    this.by = "hour";
    this.pace = new Pace();
    this.stop = () => {};
    this.skew = 0;
  }

  get title() {
    return this.customer;
  }

  start() {
    if (!isAddressable(this.customer)) {
      this.problem = { status: 422, message: "A name of one or two dots has no address on the web. The command line shows it: tidegate usage." };
      this.changed();
      return;
    }
    const stop = follow(this.api, customerPath(this.customer, "stream"), {
      message: (_, usage) => this.take(usage),
      state: (state, problem) => {
        const was = this.state;
        this.state = state;
        // Messages have the newest buckets alone, so older ones are asked for at first and after each absence.
        if (state === "live" && was !== "live") this.load();
        if (state === "refused") {
          this.problem = problem;
          this.refused(problem);
        }
        if (state !== was || problem) this.changed();
      },
    });
    this.stop = () => {
      stop();
      clearTimeout(this.again);
    };
  }

  take(usage) {
    const now = Date.parse(usage.now);
    this.skew = now - Date.now();
    if (this.usage && this.usage.period.start !== usage.period.start) this.pace = new Pace();
    for (const meter of usage.meters) this.pace.add(meter.meter, now, meter.total);
    this.usage = usage;
    this.fill(usage);
  }

  async load() {
    const query = `?hours=${SPANS.hour.count}&days=${SPANS.day.count}`;
    try {
      this.fill(await this.api.get(customerPath(this.customer, "usage") + query));
      this.isLoaded = true;
      this.changed();
      if (this.isOperator) await this.loadStatement();
    } catch (problem) {
      // The stream tells how it stands.
      if (!(problem instanceof Problem)) throw problem;
      this.again = setTimeout(() => this.state === "live" && this.load(), AGAIN_MS);
    }
  }

  /** What was billed; nothing where this service has no statement. */
  async loadStatement() {
    try {
      this.statement = (await this.api.get(`/v1/statement?customer=${encodeURIComponent(this.customer)}`)).lines;
      this.changed();
    } catch (problem) {
      if (!(problem instanceof Problem) || problem.status !== 403) throw problem;
    }
  }

  fill({ hours, days }) {
    this.hours = merged(this.hours, hours);
    this.days = merged(this.days, days);
    this.changed();
  }

  /** The server's now, as far as it is known. */
  get now() {
    return Date.now() + this.skew;
  }

  view() {
    if (this.problem) return this.failure();
    if (!this.usage) return html`<div class="page">${loading("usage")}${this.state === "waiting" ? empty("The service does not answer yet; this page keeps asking.") : nothing}</div>`;
    const usage = this.usage;
    return html`<div class="page customer ${this.state === "live" && !usage.stale ? "" : "stale"}">
      ${this.heading(usage)}
      ${usage.stale ? banner("These figures may be old.", usage.lag === null ? "Usage is not being counted at the moment." : `Usage of the last ${span(usage.lag)} may be missing.`) : nothing}
      <section aria-labelledby="now">
        <h2 id="now" class="visually-hidden">Usage now</h2>
        <div class="meters">${keyed(usage.meters, (one) => one.meter, (one) => this.meter(one, usage))}</div>
      </section>
      ${this.charts(usage)}
      ${panel("history", "Alerts", alertList(usage.alerts, this.now, { zone: usage.zone, withCustomer: false }))}
      ${this.statement.length ? panel("statement", "Statement", statementTable(this.statement, usage.zone)) : nothing}
      ${usage.unmetered?.length ? panel("unmetered", "Received, not metered", unmeteredList(usage.unmetered, this.now, { zone: usage.zone, withCustomer: false })) : nothing}
    </div>`;
  }

  failure() {
    const status = this.problem.status;
    const title = status === 401 ? "This link is no longer good" : status === 403 ? "Not yours to see" : "This customer cannot be shown";
    return html`<div class="page">${failed(title, this.problem.message)}</div>`;
  }

  heading(usage) {
    const { start, end } = usage.period;
    const left = end === null ? null : (Date.parse(end) - this.now) / 1000;
    return html`<header class="heading">
      <div class="who">
        <h1>${name(usage.customer)}</h1>
        <p class="facts">
          <span>Plan ${name(usage.plan)}</span>
          <span>Since ${when(Date.parse(start), usage.zone, "day")}${end === null ? nothing : html`, until ${when(Date.parse(end), usage.zone, "day")}`}</span>
          ${left === null ? nothing : html`<span>${span(Math.max(left, 0))} left</span>`}
          <span>${usage.zone}</span>
        </p>
      </div>
      <dl class="bill">
        <div><dt>Live bill</dt><dd>${price(usage.bill)}</dd></div>
        ${usage.spend_cap ? html`<div><dt>of at most</dt><dd>${price(usage.spend_cap.cap)}</dd></div>` : nothing}
      </dl>
      <p class="asof">${connection(this.state)}<span class="fresh">${this.freshness(usage)}</span></p>
    </header>`;
  }

  freshness(usage) {
    const newest = usage.meters.map((one) => Date.parse(one.as_of)).filter((at) => at);
    return newest.length ? `Newest event ${ago((this.now - Math.max(...newest)) / 1000)}` : "No events in this period";
  }

  meter(one, usage) {
    const limit = one.limit.cap ?? one.limit.included;
    const id = `meter-${usage.meters.indexOf(one)}`;
    return html`<article class="meter ${one.level}" data-meter=${one.meter} data-level=${one.level} aria-labelledby=${id}>
      <header>
        <h3 id=${id}>${words(one.meter)}</h3>
        ${one.level === "free" ? nothing : chip(one.level, one.standing)}
      </header>
      <p class="total"><span class="number" data-total=${one.total} title="${grouped(one.total)} ${one.unit}">${grouped(one.total)}</span>
        ${limit === null ? html`<span class="of">${one.unit}</span>` : html`<span class="of">of ${grouped(limit)} ${one.unit}${one.limit.cap === null ? " included" : ""}</span>`}</p>
      ${one.share === null ? html`<div class="gauge none"></div>` : gauge(one, limit)}
      <dl class="facts">${this.facts(one, usage)}</dl>
      ${this.raise && one.limit.cap !== null ? html`<footer><button type="button" class="quiet" @click=${() => this.raise(this.customer, one)}>Change cap<span class="visually-hidden"> of ${words(one.meter)}</span></button></footer>` : nothing}
    </article>`;
  }

  *facts(one, usage) {
    const fact = (title, value) => html`<div><dt>${title}</dt><dd>${value}</dd></div>`;
    const rate = this.pace.rate(one.meter, this.now, this.hours, Date.parse(one.as_of));
    if (one.remaining !== null) {
      yield fact("Left", number(one.remaining));
      if (Number(one.reserved) > 0) yield fact("Held", number(one.reserved));
      if (isUsedUp(one)) yield fact("To the cap", toCap(one, rate, usage, this.now));
    }
    if (one.limit.included !== null && one.limit.cap !== null) yield fact("Included", number(one.limit.included));
    if (Number(one.bill) > 0) yield fact("Overage", price(one.bill));
    if (one.limit.shadow) yield fact("Cap", "watched, not enforced");
    if (one.remaining === null && Number(one.bill) === 0) yield fact("Events", number(String(one.events)));
  }

  charts(usage) {
    const used = usage.meters.filter((one) => one.events > 0 || this.days.some((day) => day.meter === one.meter));
    const choices = html`<div class="choice" role="group" aria-label="Time span">
      ${Object.entries(SPANS).map(([by, { title }]) => html`<button type="button" aria-pressed=${String(this.by === by)} @click=${() => this.choose(by)}>${title}</button>`)}
    </div>`;
    const body = !this.isLoaded ? loading("charts") : used.length
      ? html`<div class="charts">${keyed(used, (one) => one.meter, (one) => this.chart(one, usage))}</div>`
      : empty("Nothing was used yet; charts begin with the first event.");
    return panel("time", this.by === "hour" ? "By hour" : "By day", body, choices);
  }

  choose(by) {
    this.by = by;
    this.changed();
  }

  chart(one, usage) {
    const { count, title } = SPANS[this.by];
    const shown = slots(this.by === "hour" ? this.hours : this.days, one.meter, this.by, count, this.now, usage.zone);
    return html`<figure>
      <figcaption>${words(one.meter)} ${one.unit === one.meter ? nothing : html`<span class="unit">${one.unit}</span>`}</figcaption>
      <tide-bars aria-label="${words(one.meter)}, ${title.toLowerCase()}, as bars; the table below has the figures"
        .data=${{ slots: shown, unit: one.unit, zone: usage.zone, by: this.by }}></tide-bars>
      <details><summary>Table<span class="visually-hidden"> of ${words(one.meter)}</span></summary>${table(shown, one, usage.zone, this.by)}</details>
    </figure>`;
  }
}

const gauge = (one, limit) => {
  const marks = one.thresholds.filter((at) => at.value !== null).map((at) => (100 * Number(at.value)) / Number(limit));
  if (one.limit.cap !== null && one.limit.included !== null) marks.push((100 * Number(one.limit.included)) / Number(limit));
  return html`<div role="meter" aria-label="${words(one.meter)} used" aria-valuemin="0" aria-valuemax="100"
    aria-valuenow=${Math.min(Number(one.share), 100)} aria-valuetext="${one.share} percent">${bar(Number(one.share), one.level, marks)}<span class="share" aria-hidden="true">${one.share} %</span></div>`;
};

function toCap(one, rate, usage, now) {
  if (one.level === "denied") return "reached";
  const end = usage.period.end === null ? null : Date.parse(usage.period.end);
  const seconds = timeToCap(one, rate, end, now);
  if (seconds !== null) return seconds ? `${span(seconds)} at this rate` : "reached";
  return rate > 0 ? "not in this period" : "at rest";
}

function table(shown, one, zone, by) {
  const used = shown.filter((slot) => slot.events > 0).reverse();
  if (!used.length) return empty("No usage in this time.");
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Figures of ${words(one.meter)}"><table>
    <thead><tr><th scope="col">${by === "hour" ? "Hour" : "Day"}</th><th scope="col" class="right">${one.unit || "Total"}</th><th scope="col" class="right">Events</th></tr></thead>
    <tbody>${used.map((slot) => html`<tr><th scope="row">${when(slot.start, zone, by === "hour" ? "minute" : "day")}</th><td class="right">${grouped(slot.total)}</td><td class="right">${grouped(slot.events)}</td></tr>`)}</tbody>
  </table></div>`;
}

/** What was billed, the newest period first: an amount in whole currency, and what is not billed. */
function statementTable(lines, zone) {
  const rows = [...lines].reverse();
  return html`<div class="scroll" tabindex="0" role="region" aria-labelledby="statement"><table>
    <thead><tr><th scope="col">Invoice</th><th scope="col">Meter</th><th scope="col">Period</th><th scope="col" class="right">Units</th><th scope="col" class="right">Free</th><th scope="col" class="right">Amount</th><th scope="col" class="right">Held back</th><th scope="col" class="right">Not billed</th><th scope="col">Repaired</th></tr></thead>
    <tbody>${rows.map((one) => html`<tr data-line=${one.meter}>
      <th scope="row">${name(one.invoice || (one.subscription ? "open" : "none"))}</th>
      <td>${name(words(one.meter))}</td>
      <td>${when(Date.parse(one.period_start), zone, "day")} – ${when(Date.parse(one.period_end), zone, "day")}</td>
      <td class="right">${number(one.units)}</td><td class="right">${number(one.free)}</td>
      <td class="right">${amount(one)}</td>
      <td class="right">${number(one.held_back)}</td><td class="right">${number(one.unbilled)}</td>
      <td>${name(one.repaired.map((act) => `${act.act}, ${act.events} events: ${act.state}`).join(", "))}</td>
    </tr>`)}</tbody></table></div>`;
}

function amount(line) {
  if (line.amount === null || !line.currency) return "–";
  const style = new Intl.NumberFormat("en", { style: "currency", currency: line.currency, currencyDisplay: "code" });
  return style.format(line.amount / 10 ** style.resolvedOptions().maximumFractionDigits);
}
