// Scaling laws: losses of finished runs over training compute, with what a fitted law says beside them.

import { Chart } from "./charts.js";
import { safe } from "./curve_traces.js";
import { count, number } from "../lib/format.js";
import { go } from "../lib/router.js";
import { colour, runColours } from "../lib/theme.js";

const STEPS = 40;

// points: [{run?, label?, parameters, tokens, loss}]; fit: {constants} of the law, or null.
export function scalingPlot(title, points, fit) {
  return new Chart({
    title,
    height: 360,
    draw: () => figure(points, fit),
    rows: () => rows(points),
    describe: () => `${points.length} runs, losses from ${number(Math.min(...points.map((one) => one.loss)))}`,
    onPick: (point) => point.customdata && go(["run", point.customdata]),
  });
}

function figure(points, fit) {
  const sizes = [...new Set(points.map((point) => point.parameters))].sort((a, b) => a - b);
  const traces = sizes.flatMap((size, index) => {
    const ink = runColours()[index % runColours().length];
    const mine = points.filter((point) => point.parameters === size).sort((a, b) => a.tokens - b.tokens);
    const name = `${count(size)} parameters`;
    const dots = {
      type: "scatter",
      mode: "markers",
      name,
      x: mine.map((point) => 6 * size * point.tokens),
      y: mine.map((point) => point.loss),
      customdata: mine.map((point) => point.run),
      text: mine.map((point) => `${safe(point.label ?? point.run ?? "")}<br>${count(point.tokens)} tokens`),
      marker: { size: 9, color: ink },
      hovertemplate: "%{text}<br>loss %{y:.4f}<extra>%{fullData.name}</extra>",
    };
    const line = predicted(fit, size, mine);
    return line
      ? [
          dots,
          {
            type: "scatter",
            mode: "lines",
            x: line.x,
            y: line.y,
            line: { color: ink, width: 1.2, dash: "dot" },
            hoverinfo: "skip",
            showlegend: false,
          },
        ]
      : [dots];
  });
  const compute = points.map((point) => Math.log10(6 * point.parameters * point.tokens));
  const narrow = matchMedia("(max-width: 720px)").matches;
  const legend = narrow ? { x: 0, y: -0.25, orientation: "h" } : { x: 1, xanchor: "right", y: 1, orientation: "v" };
  const decades = Math.max(...compute) - Math.min(...compute);
  return {
    traces,
    layout: {
      hovermode: "closest",
      showlegend: sizes.length <= 12,
      margin: { b: 40 },
      xaxis: {
        type: "log",
        title: { text: "Training FLOPs, 6·N·D" },
        dtick: decades < 1.5 ? Math.log10(narrow ? 4 : 2) : 1,
        tickformat: ".1~e",
        tickangle: 0,
      },
      yaxis: { type: "log", title: { text: "Loss" } },
      legend: { ...legend, bgcolor: "rgba(0,0,0,0)", font: { color: colour("text") } },
    },
  };
}

function predicted(fit, size, mine) {
  const loss = fit && lossOf(fit.constants ?? {});
  if (!loss) return null;
  const [low, high] = [mine[0].tokens / 1.5, mine.at(-1).tokens * 1.5];
  const tokens = Array.from({ length: STEPS }, (_, index) => low * (high / low) ** (index / (STEPS - 1)));
  return { x: tokens.map((value) => 6 * size * value), y: tokens.map((value) => loss(size, value)) };
}

// Hoffmann et al. 2022, equation 2, and Kaplan et al. 2020, equation 1.5.
function lossOf(law) {
  if ("irreducible" in law) return (n, d) => law.irreducible + law.a / n ** law.alpha + law.b / d ** law.beta;
  if ("n_c" in law) return (n, d) => ((law.n_c / n) ** (law.alpha_n / law.alpha_d) + law.d_c / d) ** law.alpha_d;
  return null;
}

function rows(points) {
  return [
    ["run", "parameters", "tokens", "flops", "loss"],
    ...points.map((point) => [
      point.run ?? "",
      point.parameters,
      point.tokens,
      6 * point.parameters * point.tokens,
      point.loss,
    ]),
  ];
}
