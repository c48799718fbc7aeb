// One customer's page in a frame of another site. Its token comes in the fragment, `/embed#token=…`: browsers send no
// fragment to servers, so it is in no log and no Referer; it is taken out of the address as soon as it was read. A frame
// that gets a new fragment goes on with the new token.

import { Api, Problem } from "./api.js";
import { CustomerPage } from "./customer.js";
import { needsKey } from "./session.js";
import { failed, html, loading, render } from "./view.js";

const AGAIN_MS = 2000;
const TICK_MS = 1000;

const main = document.getElementById("main");
let page = null;
let trouble = null;
let due = false;
let turn = 0;

function changed() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    render(trouble ? html`<div class="page">${failed(trouble.title, trouble.detail)}</div>` : page ? page.view() : html`<div class="page">${loading("usage")}</div>`, main);
  });
}

function show(title, detail) {
  trouble = { title, detail };
  changed();
}

/** Reads the fragment, and takes the token out of the address and of the history. */
function given() {
  const found = new URLSearchParams(location.hash.slice(1));
  const token = found.get("token") ?? "", customer = found.get("customer") ?? "";
  if (token) {
    found.delete("token");
    history.replaceState(null, "", `${location.pathname}#${found}`);
  }
  return { token, customer };
}

async function begin({ token, customer }, mine = ++turn) {
  page?.stop();
  page = null;
  trouble = null;
  changed();
  if (new URLSearchParams(location.search).has("token")) {
    show("The token belongs behind a #", "Behind a question mark it would stand in logs. This one should be revoked.");
    return;
  }
  if (!token && needsKey()) {
    show("This link is not whole", "It needs a token behind its #.");
    return;
  }
  const api = new Api(token);
  try {
    const key = await api.get("v1/key");
    if (mine !== turn) return;
    if (key.customer === null && key.auth === "keys") {
      show("Not a customer’s token", "This page takes a token that may read of one customer alone.");
      return;
    }
    page = new CustomerPage(api, key.customer ?? customer, { changed, refused: () => {} });
    page.start();
    changed();
  } catch (problem) {
    if (mine !== turn) return;
    if (!(problem instanceof Problem)) throw problem;
    if ([401, 403].includes(problem.status)) show("This link is no longer good", "Ask for a new one.");
    else {
      show("The service does not answer", "This page keeps asking.");
      setTimeout(() => mine === turn && begin({ token, customer }), AGAIN_MS);
    }
  }
}

addEventListener("hashchange", () => {
  const found = given();
  if (found.token || found.customer) begin(found);
});
setInterval(() => document.visibilityState === "visible" && page && changed(), TICK_MS);
begin(given());
