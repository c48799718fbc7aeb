// Changing a customer's cap: the limit is read with its tag, and written only if nobody else changed it meanwhile.

import { customerPath } from "./api.js";
import { grouped, words } from "./format.js";
import { html, name, nothing, render } from "./view.js";

const DECIMAL = /^(0|[1-9][0-9]{0,14})(\.[0-9]{1,24})?$/;

/** A dialog over the page; the browser keeps the focus in it and gives it back. */
export class CapDialog {
  constructor(api, root) {
    this.api = api;
    this.root = root;
  }

  /** Asks for a new cap of this meter (as usage has it). */
  open(customer, meter) {
    Object.assign(this, { customer, meter, problem: "", busy: false, limit: null });
    this.draw();
    this.root.querySelector("dialog").showModal();
    this.root.querySelector("input").select();
    this.reading = this.read();
  }

  get path() {
    return customerPath(this.customer, "limits", this.meter.meter);
  }

  read() {
    return this.tried(async () => {
      this.limit = await this.api.ask("GET", this.path);
    });
  }

  async save(event) {
    event.preventDefault();
    const form = new FormData(event.target);
    const cap = String(form.get("cap")).trim();
    if (!DECIMAL.test(cap)) {
      // A comma is a decimal sign to some and groups thousands to others, so it is not guessed.
      this.say("Needs a number such as 25000 or 1800.5, with a point and without separators.");
      this.root.querySelector("input").focus();
      return;
    }
    // Whoever types fast is ahead of the answer; where there was none, this asks again.
    await this.reading;
    if (!this.limit && !(await this.read())) return;
    await this.write("PUT", { ...this.limit.body.override, cap }, String(form.get("note")));
  }

  restore() {
    return this.write("DELETE", undefined, "the plan's limit again");
  }

  async write(method, body, note) {
    const query = note ? `?note=${encodeURIComponent(note.slice(0, 500))}` : "";
    const done = await this.tried(async () => {
      await this.api.ask(method, this.path + query, { body, headers: { "if-match": this.limit.tag } });
    });
    if (done) this.close();
  }

  /** Whether it went well; else the reason is shown. Where somebody else was first, what holds now is read again. */
  async tried(act) {
    this.busy = true;
    this.say("");
    try {
      await act();
      return true;
    } catch (problem) {
      if (problem.status === undefined) throw problem;
      const more = problem.errors.map((one) => one.detail).join("; ");
      if (problem.status === 412) {
        this.limit = await this.api.ask("GET", this.path).catch(() => this.limit);
        this.problem = `Somebody else changed it meanwhile: the cap is now ${capOf(this.limit)}. Save again to replace it.`;
      } else this.problem = problem.message + (more ? ` (${more})` : "");
      return false;
    } finally {
      this.busy = false;
      this.draw();
    }
  }

  say(problem) {
    this.problem = problem;
    this.draw();
  }

  close() {
    this.root.querySelector("dialog")?.close();
  }

  draw() {
    const { meter, limit } = this;
    render(
      html`<dialog aria-labelledby="cap-title" @close=${() => render(nothing, this.root)}>
        <form method="dialog" @submit=${(event) => this.save(event)} novalidate>
          <h2 id="cap-title">Cap of ${words(meter.meter)}</h2>
          <p class="facts"><span>${name(this.customer)}</span><span>used ${grouped(meter.total)}</span><span>cap ${limit ? capOf(limit) : grouped(meter.limit.cap)}</span></p>
          <label for="cap">New cap${meter.unit ? html` <span class="unit">${meter.unit}</span>` : nothing}</label>
          <input id="cap" name="cap" inputmode="decimal" autocomplete="off" spellcheck="false" required autofocus
            aria-describedby="cap-help" aria-invalid=${String(Boolean(this.problem))} .defaultValue=${meter.limit.cap}>
          <p id="cap-help" class="help">It holds from the next request on, everywhere.</p>
          <label for="note">Why <span class="unit">for the history, if you like</span></label>
          <input id="note" name="note" maxlength="500" autocomplete="off">
          <p class="problem" role="alert">${this.problem}</p>
          <div class="buttons">
            <button type="submit" class="strong" ?disabled=${this.busy && limit !== null}>Save cap</button>
            <button type="button" @click=${() => this.close()}>Cancel</button>
            ${limit?.body.override ? html`<button type="button" class="quiet last" ?disabled=${this.busy} @click=${() => this.restore()}>Back to the plan’s limit</button>` : nothing}
          </div>
        </form>
      </dialog>`,
      this.root,
    );
  }
}

const capOf = (limit) => (limit.body.effective.cap === null ? "none" : grouped(limit.body.effective.cap));
