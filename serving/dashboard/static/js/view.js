// Pieces that both pages are made of. Values go into templates as text; lit-html never reads them as markup.

import { html, nothing, render, svg } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { ago, brief, grouped, HERE, money, when, words } from "./format.js";

export { html, nothing, render, svg };

/** A list whose rows keep their elements, and so the focus, as they change places; keys need not differ. */
export function keyed(items, key, template) {
  const seen = new Map();
  const unique = (item) => {
    const text = key(item), count = (seen.get(text) ?? 0) + 1;
    seen.set(text, count);
    return `${count} ${text}`;
  };
  return repeat(items, unique, template);
}

/** What `standing` says of a level, for eyes that see no colour too. */
const MARKS = { free: "", noted: "△", overage: "+", over: "▲", grace: "▲", denied: "■" };

export const chip = (level, text) => html`<span class="chip ${level}"><span aria-hidden="true">${MARKS[level] ?? ""}</span>${text}</span>`;

/** A name that somebody else chose: set apart, so that its direction changes nothing around it. */
export const name = (text) => html`<bdi class="name" title=${visible(text)}>${visible(text)}</bdi>`;

/** Control characters and direction marks as themselves, so that names that look alike are told apart. */
export const visible = (text) =>
  String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);

/** The address of a customer's page; the name is in the fragment, so no server and no log gets to see it. */
export const customerLink = (customer) => html`<a href="#/customers/${escaped(customer)}">${name(customer)}</a>`;

const escaped = (text) => {
  try {
    return encodeURIComponent(text);
  } catch {
    return "";
  }
};

/** A bar of so much of a limit, with marks where thresholds are. `share` and marks are in percent. */
export function bar(share, level, marks = []) {
  const width = Math.min(Math.max(share, 0), 100);
  return html`<svg class="gauge ${level}" aria-hidden="true" focusable="false">
    <rect class="track" width="100%" height="100%" rx="3"></rect>
    <rect class="fill" width="${width}%" height="100%" rx="3"></rect>
    ${marks.filter((at) => at > 0 && at < 100).map((at) => svg`<line class="mark" x1="${at}%" x2="${at}%" y1="0" y2="100%"></line>`)}
  </svg>`;
}

export const number = (text) => html`<span class="number" title=${grouped(text)}>${brief(text)}</span>`;
export const price = (text) => html`<span class="number" title=${grouped(text)}>${money(text)}</span>`;

/** A panel with a heading; `aside` stands at its right. */
export const panel = (id, title, body, aside = nothing, style = "") => html`
  <section class="panel ${style}" aria-labelledby=${id}>
    <header><h2 id=${id}>${title}</h2>${aside}</header>
    ${body}
  </section>`;

export const empty = (text) => html`<p class="empty">${text}</p>`;

/** While nothing has come yet. */
export const loading = (what) => html`<div class="loading" role="status"><span class="visually-hidden">Loading ${what}</span>
  <div class="bone wide"></div><div class="bone"></div><div class="bone"></div></div>`;

export const failed = (title, detail, action = nothing) => html`
  <div class="failed" role="alert"><h2>${title}</h2><p>${detail}</p>${action}</div>`;

/** What to know before any figure is trusted: across the page, above everything else. */
export const banner = (title, detail) => html`
  <div class="banner" role="alert"><strong>${title}</strong> ${detail}</div>`;

const STATES = {
  connecting: ["Connecting", "waiting"],
  live: ["Live", "live"],
  waiting: ["Reconnecting", "waiting"],
  refused: ["Stopped", "refused"],
};

/** How the stream stands. It is read out only when that changes. */
export const connection = (state) => {
  const [text, style] = STATES[state];
  return html`<span class="connection ${style}" role="status" data-state=${state}><span class="dot" aria-hidden="true"></span>${text}</span>`;
};

// As in operators/model/alert_text.py, shorter.
const SAYS = {
  "threshold raised": (one) => `reached ${levelOf(one)}`,
  "threshold resolved": (one) => (one.level === "none" ? "is below all thresholds" : `is below ${levelOf(one)} again`),
  "cap_reached raised": () => "reached the cap",
  "cap_released resolved": () => "is below the cap again",
  "overage_started raised": () => "uses more than is included",
  "overage_ended resolved": () => "is within what is included again",
  "correction announced": () => "was corrected in a closed period",
  "unmetered announced": (one) => `${one.event_name ? `${one.event_name}: ` : ""}accepted, but not metered (${words(one.level ?? "")})`,
  "drift raised": () => "differs from the provider",
  "drift resolved": () => "agrees with the provider again",
  "flow_behind raised": (one) => `The flow is behind: ${one.text ?? ""}`,
  "flow_behind resolved": () => "The flow counts again",
  "stalled raised": (one) => `The flow stands still (process ${one.process ?? "?"})`,
  "stalled resolved": (one) => `The flow goes on (process ${one.process ?? "?"})`,
};
const GRAVE = new Set(["cap_reached", "stalled", "drift"]);

const levelOf = (one) => (/%$/.test(one.level ?? "") ? one.level : grouped(one.level ?? ""));

/** An alert in words: `tokens in reached 80%`. */
export function alertWords(one) {
  const said = SAYS[`${one.kind} ${one.state}`]?.(one) ?? one.text ?? words(`${one.kind ?? "alert"} ${one.state ?? ""}`);
  // What was not metered is of an event's name first, which it says itself.
  return one.meter && one.kind !== "unmetered" ? `${words(one.meter)} ${said}` : said;
}

export function alertLevel(one) {
  if (one.state === "resolved" || one.kind === "cap_released" || one.kind === "overage_ended") return "good";
  if (GRAVE.has(one.kind)) return "denied";
  return one.kind === "overage_started" || one.kind === "unmetered" || one.state === "raised" ? "noted" : "free";
}

/** A list of alerts, the newest first. */
export function alertList(alerts, now, { zone = HERE, withCustomer = true } = {}) {
  if (!alerts.length) return empty("No alerts.");
  const key = (one) => `${one.id ?? ""} ${one.kind} ${one.state} ${one.at ?? ""} ${one.process ?? ""}`;
  return html`<ol class="alerts">${keyed(alerts, key, (one) => alertItem(one, now, zone, withCustomer))}</ol>`;
}

function alertItem(one, now, zone, withCustomer) {
  const at = one.at ? Date.parse(one.at) : NaN;
  return html`<li class=${alertLevel(one)}>
    <span class="what">${withCustomer && one.customer ? html`${customerLink(one.customer)} ` : nothing}${visible(alertWords(one))}</span>
    <span class="more">${one.total === undefined || one.kind === "unmetered" ? nothing : html`at ${number(one.total)}${one.limit ? html` of ${number(one.limit)}` : nothing}`}</span>
    ${Number.isNaN(at) ? html`<span></span>` : html`<time datetime=${one.at} title=${when(at, zone, "minute")}>${ago((now - at) / 1000)}</time>`}
  </li>`;
}

// The event's name stands before it.
const WHY = {
  unknown_name: "no meter takes events of this name",
  no_filter_matched: "no meter’s filter lets it pass",
};

/** What was accepted and not metered, cause by cause, with the last event of each. */
export function unmeteredList(causes, now, { zone = HERE, withCustomer = true } = {}) {
  const key = (one) => JSON.stringify([one.event_name, one.reason, one.meter, one.key, one.partly]);
  return html`<ol class="causes">${keyed(causes, key, (one) => causeItem(one, now, zone, withCustomer))}</ol>`;
}

function causeItem(one, now, zone, withCustomer) {
  const at = Date.parse(one.last_at);
  const count = `${grouped(one.events)} ${one.events === 1 ? "event" : "events"}${one.partly ? ", read by other meters" : ""}`;
  return html`<li class=${one.reason === "no_filter_matched" || one.partly ? "free" : "noted"} data-reason=${one.reason}>
    <span class="what">${one.event_name ? html`<strong>${name(one.event_name)}</strong> ${WHY[one.reason] ?? visible(one.text)}` : visible(one.text)}</span>
    <span class="more">${count}; the last ${withCustomer && one.customer ? html`from ${customerLink(one.customer)}` : nothing} has the id ${name(one.event_id)}</span>
    <time datetime=${one.last_at} title=${when(at, zone, "minute")}>${ago((now - at) / 1000)}</time>
  </li>`;
}
