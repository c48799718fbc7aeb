// Who looks at the page. An operator's key stays in this tab's session storage; it is never part of an address.

import { Api, Problem } from "./api.js";

const NAME = "tidegate.key";

/** Storage may be forbidden, as in frames of other sites; then a key lasts as long as the page. */
const storage = {
  get: (name) => attempt(() => sessionStorage.getItem(name)) ?? "",
  set: (name, value) => attempt(() => sessionStorage.setItem(name, value)),
  remove: (name) => attempt(() => sessionStorage.removeItem(name)),
};

function attempt(act) {
  try {
    return act();
  } catch {
    return null;
  }
}

/** Whether the service wants a key at all; it writes so into its pages. */
export const needsKey = () => document.body.dataset.auth === "keys";

export class Session {
  constructor() {
    this.api = new Api(storage.get(NAME));
    this.key = null;
  }

  /** What the reader may do: true once it is known, false where a key is needed. Raises Problem where nobody answers. */
  async open() {
    if (!this.hasKey && needsKey()) return false;
    try {
      this.key = await this.api.get("v1/key");
      return true;
    } catch (problem) {
      if (!(problem instanceof Problem) || ![401, 403].includes(problem.status)) throw problem;
      return false;
    }
  }

  /** Keeps a key that is good; raises Problem with what is wrong with it. */
  async enter(token) {
    const api = new Api(token);
    const key = await api.get("v1/key");
    storage.set(NAME, token);
    Object.assign(this, { api, key });
  }

  leave() {
    storage.remove(NAME);
    this.api = new Api("");
    this.key = null;
  }

  get mayRaise() {
    return this.key?.scopes.includes("admin") ?? false;
  }

  get hasKey() {
    return this.api.token !== "";
  }
}
