// Charts as elements of their own, drawn by uPlot on a canvas in the colours of the theme. Each has a label that says
// what it shows; the figures stand in a table beside it (view.js).

import { brief, grouped, more, rate, span, when } from "./format.js";

const Plot = globalThis.uPlot;
const DARK = matchMedia("(prefers-color-scheme: dark)");
const FONT = "11px system-ui, sans-serif";

/** What all charts have in common: one plot, as wide as there is room, drawn anew in another theme. */
class Chart extends HTMLElement {
  connectedCallback() {
    this.setAttribute("role", "img");
    this.frame ??= this.appendChild(document.createElement("div"));
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(this);
    this.themed = () => this.plot?.redraw(false);
    DARK.addEventListener("change", this.themed);
    this.draw();
  }

  disconnectedCallback() {
    this.resized.disconnect();
    DARK.removeEventListener("change", this.themed);
    this.plot?.destroy();
    this.plot = null;
  }

  fit() {
    const width = Math.floor(this.clientWidth);
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  draw() {
    if (!this.isConnected || !this.columns) return;
    if (this.plot) this.plot.setData(this.columns);
    else this.plot = new Plot({ ...this.options(), width: this.clientWidth || 300, height: this.height }, this.columns, this.frame);
  }

  /** Says below the chart, for eyes alone, what stands under the pointer. */
  write(text) {
    this.readout ??= this.appendChild(Object.assign(document.createElement("p"), { className: "readout" }));
    this.readout.setAttribute("aria-hidden", "true");
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }

  colour(name) {
    return getComputedStyle(this).getPropertyValue(`--${name}`).trim();
  }

  axis(rest) {
    return {
      stroke: () => this.colour("muted"),
      font: FONT,
      grid: { stroke: () => this.colour("line"), width: 1 },
      ticks: { show: false },
      ...rest,
    };
  }

  /** Three lines at most, from nothing up. */
  upright() {
    return this.axis({ size: 44, gap: 6, space: 40, values: (_, splits) => splits.map((one) => (one % 1 && one > 1 ? "" : brief(plain(one)))) });
  }
}

/** Without an exponent, as `brief` wants it. */
const plain = (number) => (Number.isInteger(number) ? String(BigInt(number)) : number.toFixed(4).replace(/0+$/, ""));

/** Usage by hour or by day. Set `data` to `{slots, unit, zone, by}`. */
class Bars extends Chart {
  height = 120;

  set data({ slots, unit, zone, by }) {
    Object.assign(this, { slots, unit, zone, by });
    this.columns = [slots.map((_, i) => i), slots.map((one) => Math.max(Number(one.total), 0))];
    this.draw();
    this.tell(this.plot?.cursor.idx ?? null);
  }

  options() {
    return {
      legend: { show: false },
      padding: [8, 16, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { setScale: false, x: false, y: false } },
      scales: {
        x: { time: false, range: (plot, min, max) => [min - 0.6, max + 0.6] },
        y: { range: (plot, min, max) => [0, max > 0 ? max * 1.08 : 1] },
      },
      axes: [
        this.axis({
          size: 24,
          grid: { show: false },
          splits: () => this.marks(),
          values: (_, marks) => marks.map((i) => this.label(i)),
        }),
        this.upright(),
      ],
      series: [
        {},
        {
          fill: () => this.colour("accent"),
          width: 0,
          points: { show: false },
          paths: Plot.paths.bars({ size: [0.78, 36], radius: 0.12, gap: 0 }),
        },
      ],
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)] },
    };
  }

  /** Which slots have a label, as many as there is room for: round hours, or every so many days up to today. */
  marks() {
    const room = Math.max(Math.floor((this.clientWidth - 60) / 48), 1);
    const indices = this.slots.map((_, i) => i), last = indices.length - 1;
    if (this.by === "day") return indices.filter((i) => (last - i) % Math.ceil(indices.length / room) === 0);
    const step = [3, 6, 12].find((hours) => indices.length / hours <= room) ?? 24;
    return indices.filter((i) => Number(this.hour(i).slice(0, 2)) % step === 0);
  }

  hour(i) {
    return when(this.slots[i].start, this.zone, "hour");
  }

  /** A day begins with its date. */
  label(i) {
    if (!this.slots[i]) return "";
    return this.by === "hour" && this.hour(i) !== "00:00" ? this.hour(i) : when(this.slots[i].start, this.zone, "day");
  }

  /** Says below the chart what stands under the pointer, else the peak. */
  tell(index) {
    const at = index ?? this.slots.reduce((best, one, i) => (more(one.total, this.slots[best].total) > 0 ? i : best), 0);
    const slot = this.slots[at];
    if (!slot) return;
    const said = `${grouped(slot.total)}${this.unit ? ` ${this.unit}` : ""}, ${when(slot.start, this.zone, this.by === "hour" ? "minute" : "day")}`;
    this.write(index === null || index === undefined ? `Peak ${said}` : said);
  }
}

/** Events per second, and requests refused per second, over the last minutes. Set `data` to `{times, events, refused}`. */
class Flow extends Chart {
  height = 190;

  set data({ times, events, refused }) {
    this.columns = [times, events, refused];
    this.draw();
    this.tell(this.plot?.cursor.idx ?? null);
  }

  options() {
    const line = (colour, fill) => ({
      stroke: () => this.colour(colour),
      fill: () => this.colour(fill),
      width: 1.75,
      points: { show: false },
      spanGaps: false,
    });
    return {
      legend: { show: false },
      padding: [10, 16, 0, 0],
      cursor: { y: false, drag: { setScale: false, x: false, y: false }, points: { size: 6 } },
      scales: {
        x: { time: true, range: () => this.stretch() },
        y: { range: (plot, min, max) => [0, max > 0 ? max * 1.12 : 1] },
      },
      axes: [
        this.axis({ size: 24, grid: { show: false }, space: 70, splits: (plot, axis, min, max) => backwards(min, max), values: (plot, splits) => splits.map((at) => ahead(at, plot.scales.x.max)) }),
        this.upright(),
      ],
      series: [{}, line("accent", "accent-soft"), line("denied", "denied-soft")],
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)] },
    };
  }

  tell(index) {
    const [times, events, refused] = this.columns;
    const at = index ?? times.length - 1;
    if (events[at] === null || events[at] === undefined) return this.write("");
    const back = times.at(-1) - times[at];
    return this.write(`${rate(events[at])} events/s, ${rate(refused[at])} refused/s ${back < 1 ? "now" : `${span(back)} ago`}`);
  }

  /** Up to now: a minute at first, five in the end. */
  stretch() {
    const [times] = this.columns, now = times.at(-1) ?? 0;
    return [now - Math.min(Math.max(now - (times[0] ?? now), 60), 300), now];
  }
}

const backwards = (min, max) => {
  const step = max - min > 150 ? 60 : max - min > 90 ? 30 : 15;
  return Array.from({ length: Math.floor((max - min) / step) + 1 }, (_, i) => max - i * step).reverse();
};

const ahead = (at, now) => {
  const back = Math.round(now - at);
  return back < 5 ? "now" : back % 60 ? `−${back} s` : `−${back / 60} min`;
};

customElements.define("tide-bars", Bars);
customElements.define("tide-flow", Flow);
