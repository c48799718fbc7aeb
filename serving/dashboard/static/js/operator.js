// The operator's page: who looks, which page is shown, and drawing it when something changed.

import { Problem } from "./api.js";
import { CapDialog } from "./cap.js";
import { CustomerPage } from "./customer.js";
import { OverviewPage } from "./overview.js";
import { Session } from "./session.js";
import { failed, html, loading, nothing, render, visible } from "./view.js";

const AGAIN_MS = 2000;
const TICK_MS = 1000;

const session = new Session();
const bar = document.getElementById("bar"), main = document.getElementById("main"), over = document.getElementById("over");
let page = null;
let login = null;
let trouble = null;
let due = false;

/** Draws at most once a frame. */
function changed() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
  });
}

function draw() {
  const title = page ? visible(page.title) : "Sign in";
  document.title = `${title} · Tidegate`;
  render(topBar(), bar);
  render(body(), main);
}

function body() {
  if (trouble) return html`<div class="page">${failed("The service does not answer", "This page keeps asking.")}</div>`;
  if (login) return signIn();
  return page ? page.view() : html`<div class="page">${loading("the page")}</div>`;
}

const topBar = () => html`
  <a class="brand" href="#/"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="M2 15c3.3 0 3.3-3 6.700-3s3.300 3 6.600 3 3.400-3 6.700-3v8H2z"></path><path d="M12 3v8M8 6.500h8" class="gate"></path></svg>Tidegate</a>
  ${session.key ? html`
    <form class="find" role="search" @submit=${find}>
      <label class="visually-hidden" for="find">Customer</label>
      <input id="find" name="customer" placeholder="Customer" autocomplete="off" spellcheck="false" maxlength="256" required>
      <button type="submit">Show</button>
    </form>` : nothing}
  ${session.key && session.hasKey ? html`<button type="button" class="quiet" @click=${() => leave()}>Sign out</button>` : nothing}`;

function find(event) {
  event.preventDefault();
  const customer = new FormData(event.target).get("customer").trim();
  if (customer) location.hash = `#/customers/${encodeURIComponent(customer)}`;
  event.target.reset();
}

const signIn = () => html`<div class="page narrow">
  <form class="panel sign-in" @submit=${enter}>
    <h1>Sign in</h1>
    <p>With an API key that may read; to change caps it needs the scope admin.</p>
    <label for="key">API key</label>
    <input id="key" name="key" type="password" autocomplete="off" spellcheck="false" required autofocus aria-describedby="key-help" aria-invalid=${String(Boolean(login.problem))}>
    <p id="key-help" class="help">It stays in this tab until you close it or sign out.</p>
    <p class="problem" role="alert">${login.problem}</p>
    <div class="buttons"><button type="submit" class="strong" ?disabled=${login.busy}>Sign in</button></div>
  </form></div>`;

async function enter(event) {
  event.preventDefault();
  const input = event.target.elements.namedItem("key");
  login = { busy: true, problem: "" };
  changed();
  try {
    await session.enter(input.value.trim());
    if (session.key.customer !== null) throw new Problem(403, { detail: "This key is one customer’s own; it opens that customer’s page alone." });
    login = null;
    route();
  } catch (problem) {
    session.leave();
    login = { busy: false, problem: problem.status === 401 ? "This key is not good." : problem.message };
    input.focus();
  }
  changed();
}

function leave(problem = "") {
  session.leave();
  page?.stop();
  page = null;
  login = { busy: false, problem };
  changed();
}

/** A key that was good may end at any time. */
function refused(problem) {
  if (problem.status === 401) leave("The key is good no more.");
}

const dialog = { open: (customer, meter) => new CapDialog(session.api, over).open(customer, meter) };

function route() {
  page?.stop();
  const [, customer] = /^#\/customers\/(.+)$/s.exec(location.hash) ?? [];
  const raise = session.mayRaise ? dialog.open : null;
  page = customer === undefined
    ? new OverviewPage(session.api, { changed, refused })
    : new CustomerPage(session.api, decoded(customer), { changed, refused, raise, isOperator: true });
  page.start();
  over.querySelector("dialog")?.close();
  changed();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function begin() {
  try {
    if (await session.open()) route();
    else login = { busy: false, problem: session.hasKey ? "The key is good no more." : "" };
    trouble = null;
  } catch (problem) {
    trouble = problem;
    setTimeout(begin, AGAIN_MS);
  }
  changed();
}

addEventListener("hashchange", () => {
  if (!session.key || login) return;
  route();
  scrollTo(0, 0);
  main.focus();
});
// A plain jump would change the fragment, which says what is shown.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
// Ages grow while nothing comes.
setInterval(() => document.visibilityState === "visible" && changed(), TICK_MS);
begin();
