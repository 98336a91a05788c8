// @ts-check
// Draws the performance charts of a loop page from the page's JSON twin.
// The page reads without this file: every chart has its table beside it.

/** @typedef {{name: string, at: number[], values: (number|null)[], bounds: (number|null)[]}} Series */
/** @typedef {{at: number, kind: string, label: string}} Mark */

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const ink = dark ? "#c9d4e5" : "#33415c";
const grid = dark ? "#2a3448" : "#e3e8f0";
const colours = { alert: "#d9822b", passed: "#2e9e5b", refused: "#c23b4b" };

/**
 * Vertical lines where something happened.
 * @param {Mark[]} marks
 */
function annotations(marks) {
  return {
    hooks: {
      draw: [
        (/** @type {any} */ plot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          for (const mark of marks) {
            const x = plot.valToPos(mark.at, "x", true);
            if (x < bbox.left || x > bbox.left + bbox.width) continue;
            ctx.strokeStyle = colours[mark.kind] ?? ink;
            ctx.lineWidth = mark.kind === "alert" ? 1 : 2;
            ctx.setLineDash(mark.kind === "alert" ? [3, 3] : []);
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
          }
          ctx.restore();
        },
      ],
    },
  };
}

/**
 * @param {HTMLElement} figure
 * @param {Series} series
 * @param {Mark[]} marks
 */
function draw(figure, series, marks) {
  const target = /** @type {HTMLElement} */ (figure.querySelector(".plot"));
  const axis = { stroke: ink, grid: { stroke: grid }, ticks: { stroke: grid } };
  const options = {
    width: target.clientWidth || 800,
    height: 220,
    plugins: [annotations(marks)],
    scales: { x: { time: true } },
    axes: [axis, { ...axis, size: 60 }],
    series: [
      {},
      { label: series.name, stroke: "#2f6fde", width: 2, spanGaps: true, points: { show: false } },
      { label: "bound", stroke: "#d9822b", width: 1, dash: [6, 4], spanGaps: true, points: { show: false } },
    ],
  };
  const Plot = /** @type {any} */ (window).uPlot;
  const plot = new Plot(options, [series.at, series.values, series.bounds], target);
  new ResizeObserver(() => plot.setSize({ width: target.clientWidth, height: 220 })).observe(target);
  figure.dataset.drawn = "yes";
}

for (const time of document.querySelectorAll("time[data-seconds]")) {
  const seconds = Number(/** @type {HTMLElement} */ (time).dataset.seconds);
  time.textContent = new Date(seconds * 1000).toISOString().slice(0, 10);
}

const figures = /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("figure.chart"));
if (figures.length) {
  const answer = await fetch(`${location.pathname}.json`);
  const page = await answer.json();
  for (const figure of figures) {
    const series = page.series.find((/** @type {Series} */ s) => s.name === figure.dataset.series);
    if (series) draw(figure, series, page.marks);
  }
}
