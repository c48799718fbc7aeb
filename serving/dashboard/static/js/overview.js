// All customers at a glance, as it changes: rates, books, who is near a limit, alerts, what waits and what was refused.

import { ago, grouped, HERE, rate, span, when, words } from "./format.js";
import "./chart.js";
import { follow } from "./stream.js";
import {
  alertList, alertWords, banner, bar, chip, connection, customerLink, empty, failed, html, keyed, loading, name, nothing, number, panel, price, unmeteredList, visible,
} from "./view.js";

const KEPT_S = 300;
const ENDS = ["rejects", "too_late", "duplicates", "conflicts", "accepted"];
const SAID_EVERY_MS = 10_000;
const FLOW = { ready: "works", stalled: "stands still", away: "does not answer" };
const NEAR = 12;

/** Follows the overview from `start` to `stop`; `changed` is called when `view` has something new. */
export class OverviewPage {
  constructor(api, { changed, refused }) {
    Object.assign(this, { api, changed, refused });
    this.title = "Overview";
    this.state = "connecting";
    this.overview = this.problem = null;
    this.flow = { times: [], events: [], refused: [] };
    this.stop = () => {};
    this.skew = 0;
    this.denied = null;
    this.told = new Set();
    this.saidAt = 0;
    this.say = "";
  }

  start() {
    this.stop = follow(this.api, "v1/stream", {
      message: (_, overview) => this.take(overview),
      state: (state, problem) => {
        const was = this.state;
        this.state = state;
        if (state === "waiting" && was === "live") this.gap();
        if (state === "refused") {
          this.problem = problem;
          this.refused(problem);
        }
        if (state !== was || problem) this.changed();
      },
    });
  }

  take(overview) {
    const now = Date.parse(overview.now);
    this.skew = now - Date.now();
    this.refusals = this.pace(now, overview.gate?.denied ?? 0);
    const { times, events, refused } = this.flow;
    if (times.at(-1) !== now / 1000) {
      times.push(now / 1000);
      events.push(overview.events_per_second);
      refused.push(this.refusals);
    }
    while (times[0] < now / 1000 - KEPT_S) for (const column of Object.values(this.flow)) column.shift();
    this.overview = overview;
    this.announce(overview.alerts);
    this.changed();
  }

  /** Requests refused per second since the last message; a service that began anew counts from nothing. */
  pace(now, denied) {
    const before = this.denied;
    this.denied = { now, count: denied };
    if (before === null || now <= before.now || denied < before.count) return 0;
    return (1000 * (denied - before.count)) / (now - before.now);
  }

  /** A line that is not there, for the time that nothing was heard. */
  gap() {
    const { times, events, refused } = this.flow;
    if (!times.length) return;
    times.push(times.at(-1) + 0.001);
    events.push(null);
    refused.push(null);
  }

  /** Tells people who listen of the newest grave alert, now and then. */
  announce(alerts) {
    const first = this.told.size === 0;
    const news = alerts.filter((one) => !this.told.has(one.id ?? JSON.stringify(one)));
    this.told = new Set(["", ...alerts.map((one) => one.id ?? JSON.stringify(one))]);
    const grave = news.find((one) => one.kind === "cap_reached" || one.kind === "stalled");
    if (first || !grave || Date.now() - this.saidAt < SAID_EVERY_MS) return;
    this.saidAt = Date.now();
    this.say = `${visible(grave.customer ?? "")} ${alertWords(grave)}`;
  }

  get now() {
    return Date.now() + this.skew;
  }

  view() {
    if (this.problem) return html`<div class="page">${failed(this.problem.status === 403 ? "Not yours to see" : "The overview cannot be shown", this.problem.message)}</div>`;
    if (!this.overview) return html`<div class="page">${loading("the overview")}${this.state === "waiting" ? empty("The service does not answer yet; this page keeps asking.") : nothing}</div>`;
    const one = this.overview;
    const isLive = this.state === "live" && one.flow.state === "live";
    return html`<div class="page overview ${isLive ? "" : "stale"}">
      <header class="heading"><h1>Overview</h1><p class="asof">${connection(this.state)}<span class="fresh">${when(Date.parse(one.now), HERE, "second")}</span></p></header>
      <p class="visually-hidden" aria-live="polite">${this.say}</p>
      ${one.flow.state === "live" ? nothing : banner("Usage is not being counted.", one.flow.detail)}
      ${this.tiles(one)}
      <div class="columns">
        <div class="main">
          ${this.throughput(one)}
          ${panel("near", "Nearest to a limit", near(one.near), html`<span class="aside">${deniedCount(one)}</span>`)}
          ${panel("top", "Most events now", top(one.top))}
        </div>
        <div class="side">
          ${panel("alerts", "Alerts", html`<div class="tall" tabindex="0" role="region" aria-labelledby="alerts">${alertList(one.alerts, this.now)}</div>`)}
          ${panel("books", "Books", books(one), one.balanced ? chip("good", "balanced") : chip("denied", "not balanced"))}
          ${one.unmetered?.length ? panel("unmetered", "Accepted, not metered", html`<div class="tall" tabindex="0" role="region" aria-labelledby="unmetered">${unmeteredList(one.unmetered, this.now)}</div>`) : nothing}
          ${panel("letters", "Dead letters", letters(one))}
          ${panel("billing", "To the provider", outbox(one.outbox))}
          ${panel("drift", "Drift", drift(one.drift, one.reconciliation, this.now))}
          ${panel("health", "Health", health(one, this.state, this.now))}
        </div>
      </div>
    </div>`;
  }

  tiles(one) {
    const asOf = one.as_of ? (this.now - Date.parse(one.as_of)) / 1000 : null;
    const gate = one.gate ?? {};
    const asked = (gate.allowed ?? 0) + (gate.denied ?? 0);
    const tile = (title, value, more, level = "") => html`<div class="tile ${level}"><dt>${title}</dt><dd class="value">${value}</dd><dd class="more">${more}</dd></div>`;
    return html`<dl class="tiles">
      ${tile("Events per second", rate(one.events_per_second), html`${grouped(one.counters.events ?? 0)} in all`)}
      ${tile("Lag", one.lag === null ? "–" : span(one.lag), "from event to readable")}
      ${tile("Newest event", asOf === null ? "–" : ago(asOf), html`${grouped(one.customers)} customers`)}
      ${tile("Refused per second", rate(this.refusals), html`${grouped(gate.denied ?? 0)} of ${grouped(asked)} asked`, this.refusals > 0 ? "denied" : "")}
      ${tile("To the provider", one.outbox ? brief(one.outbox.waiting) : "–", one.outbox ? (one.outbox.age === null ? "nothing waits" : `oldest event ${span(one.outbox.age)} old`) : "no outbox here")}
    </dl>`;
  }

  throughput(one) {
    const legend = html`<p class="legend"><span class="key accent">Events</span><span class="key denied">Refused by the gate</span></p>`;
    const said = `Last five minutes: ${rate(one.events_per_second)} events and ${rate(this.refusals)} refused requests per second now`;
    return panel("flow", "Per second", html`<tide-flow aria-label=${said} .data=${{ ...this.flow }}></tide-flow>
      <details><summary>Table<span class="visually-hidden"> of events and refused requests</span></summary>${flowTable(this.flow)}</details>`, legend);
  }
}

/** About every ten seconds one, the newest first. */
function flowTable({ times, events, refused }) {
  const shown = times.map((_, i) => i).filter((i) => events[i] !== null && (times.length - 1 - i) % 10 === 0).reverse();
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Figures per second"><table>
    <thead><tr><th scope="col">Time</th><th scope="col" class="right">Events/s</th><th scope="col" class="right">Refused/s</th></tr></thead>
    <tbody>${shown.map((i) => html`<tr><th scope="row">${when(times[i] * 1000, HERE, "second")}</th><td class="right">${rate(events[i])}</td><td class="right">${rate(refused[i])}</td></tr>`)}</tbody>
  </table></div>`;
}

const brief = (count) => number(String(count));

const deniedCount = (one) => {
  const count = one.near.filter((row) => row.level === "denied").length;
  const or = count === one.near.length && count > NEAR ? " or more" : "";
  return count ? html`<span class="denied">${count}${or} stopped at the cap</span>` : "nobody is stopped at a cap";
};

function near(rows) {
  if (!rows.length) return empty("Nobody has used anything of a limit yet.");
  return html`<div class="scroll"><table class="standings">
    <thead><tr><th scope="col">Customer</th><th scope="col">Meter</th><th scope="col" class="wide">Of the limit</th><th scope="col" class="right">Used</th><th scope="col">State</th></tr></thead>
    <tbody>${keyed(rows.slice(0, NEAR), (row) => row.customer, (row) => html`<tr data-customer=${row.customer} data-level=${row.level}>
      <th scope="row">${customerLink(row.customer)}<span class="plan">${visible(row.plan)}</span></th>
      <td>${words(row.meter)}</td>
      <td class="wide"><div class="sharing">${row.share === null ? nothing : html`${bar(Number(row.share), row.level)}<span class="share">${row.share} %</span>`}</div></td>
      <td class="right">${number(row.total)}</td>
      <td>${row.level === "free" ? html`<span class="muted">ok</span>` : chip(row.level, row.standing)}</td>
    </tr>`)}</tbody></table></div>`;
}

function top(rows) {
  if (!rows.length) return empty("No events in this period.");
  return html`<div class="scroll"><table class="roomy">
    <thead><tr><th scope="col">Customer</th><th scope="col" class="right">Events/s</th><th scope="col" class="right">Events</th><th scope="col" class="right">Live bill</th></tr></thead>
    <tbody>${keyed(rows.slice(0, 10), (row) => row.customer, (row) => html`<tr>
      <th scope="row">${customerLink(row.customer)}<span class="plan">${visible(row.plan)}</span></th>
      <td class="right">${rate(row.events_per_second)}</td><td class="right">${number(String(row.events))}</td><td class="right">${price(row.bill)}</td>
    </tr>`)}</tbody></table></div>`;
}

function books(one) {
  const row = (title, count, style = "") => html`<div class=${style}><dt>${title}</dt><dd>${grouped(count ?? 0)}</dd></div>`;
  return html`<dl class="sums">
    ${row("Events", one.counters.events, "sum")}
    ${ENDS.map((end) => row(words(end), one.counters[end]))}
    ${one.counters.unmetered ? row("of those not metered", one.counters.unmetered, "noted") : nothing}
  </dl>`;
}

function letters(one) {
  const reasons = Object.entries(one.dead_letters ?? {}).sort((a, b) => b[1] - a[1]);
  if (one.dead_letters && !reasons.length) return empty("None.");
  if (reasons.length) {
    return html`<dl class="sums">${reasons.map(([reason, count]) => html`<div><dt>${words(reason)}</dt><dd>${grouped(count)}</dd></div>`)}</dl>`;
  }
  const kinds = ["rejects", "too_late", "conflicts"].filter((kind) => one.counters[kind]);
  if (!kinds.length) return empty("None.");
  return html`<dl class="sums">${kinds.map((kind) => html`<div><dt>${words(kind)}</dt><dd>${grouped(one.counters[kind])}</dd></div>`)}</dl>`;
}

function outbox(box) {
  if (!box) return empty("This machine has no outbox.");
  const row = (title, value, level = "") => html`<div class=${level}><dt>${title}</dt><dd>${value}</dd></div>`;
  return html`<dl class="sums">
    ${row("Waiting", grouped(box.waiting))}
    ${row("Oldest event", box.age === null ? "–" : `${span(box.age)} old`)}
    ${row("Kept back", grouped(box.parked), box.parked ? "noted" : "")}
    ${row("Refused", grouped(box.refused), box.refused ? "denied" : "")}
  </dl>`;
}

function drift(findings, last, now) {
  const seen = last?.ended_at ? html`<p class="muted">Compared ${ago((now - Date.parse(last.ended_at)) / 1000)}.</p>` : nothing;
  if (!findings.length) return html`${empty(last ? "Ours and the provider’s agree." : "Nothing was compared yet.")}${seen}`;
  return html`<ul class="findings">${findings.slice(0, 8).map((one) => html`<li>
    ${one.customer ? customerLink(one.customer) : nothing} <span>${visible(words(one.meter ?? ""))}</span>
    <span class="muted">${visible(words(one.status ?? one.kind ?? ""))}</span>
    ${one.drift === undefined ? nothing : html`<span class="number">${visible(one.drift)}</span>`}
    ${one.acknowledged ? html`<p class="muted">${visible(`${one.acknowledged.reason} – ${one.acknowledged.by}`)}</p>` : nothing}</li>`)}</ul>${seen}`;
}

function health(one, state, now) {
  const row = (title, value, level) => html`<div class=${level}><dt>${title}</dt><dd>${value}</dd></div>`;
  const processes = one.processes ?? [];
  return html`<dl class="sums">
    ${row("Service", state === "live" ? "answers" : "does not answer", state === "live" ? "good" : "denied")}
    ${processes.map((each) => row(`Flow, process ${each.process}`, FLOW[each.state] ?? each.state, each.state === "ready" ? "good" : "denied"))}
    ${processes.length || !one.written_at ? nothing : row("Flow wrote", ago((now - Date.parse(one.written_at)) / 1000), "")}
    ${one.gate?.degraded ? row("Decided without the store", grouped(one.gate.degraded), "noted") : nothing}
    ${row("Totals", one.flow.lag === null ? "age unknown" : `${span(one.flow.lag)} old`, one.flow.state === "live" ? "good" : "denied")}
    ${row("Catalog", html`version ${one.catalog}`, "")}
  </dl>`;
}
