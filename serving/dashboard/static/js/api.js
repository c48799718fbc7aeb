// The service's API: requests with the reader's key, errors as problems (RFC 9457).

/** What went wrong: `status` 0 where there was no answer at all. */
export class Problem extends Error {
  constructor(status, body = {}) {
    super(body.detail || (status ? `The service answered ${status}.` : "The service does not answer."));
    this.status = status;
    this.errors = body.errors ?? [];
  }
}

export class Api {
  /** `token` may be empty, where the service wants none. */
  constructor(token) {
    this.token = token;
  }

  /** The answer to a request as `{body, tag}`; raises Problem. */
  async ask(method, path, { body, headers = {} } = {}) {
    const sent = body === undefined ? {} : { body: JSON.stringify(body) };
    const type = body === undefined ? {} : { "content-type": "application/json" };
    const answer = await this.open(path, { method, ...sent, headers: { ...type, ...headers } });
    // One that is cut off is none.
    const read = await answer.json().catch(() => { throw new Problem(0); });
    return { body: read, tag: answer.headers.get("etag") };
  }

  async get(path) {
    return (await this.ask("GET", path)).body;
  }

  /** A response that is a success, its body unread. */
  async open(path, options = {}) {
    const key = this.token ? { authorization: `Bearer ${this.token}` } : {};
    let answer;
    try {
      answer = await fetch(path, {
        ...options,
        headers: { ...key, ...options.headers },
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0);
    }
    if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
    return answer;
  }
}

/** Whether a name can stand in a path: browsers take dots for steps up, however they are escaped. */
export const isAddressable = (name) => name !== "" && name !== "." && name !== ".." && isWhole(name);

function isWhole(name) {
  try {
    encodeURIComponent(name);
    return true;
  } catch {
    // Half of a surrogate pair.
    return false;
  }
}

/** `v1/customers/…/usage`, relative, so that the service may stand behind a prefix. */
export function customerPath(customer, ...parts) {
  if (![customer, ...parts].every(isAddressable)) throw new Problem(422, { detail: "This name has no address." });
  return ["v1/customers", ...[customer, ...parts].map(encodeURIComponent)].join("/");
}
