// How curves are shown, as the address says it.

import { AXES } from "./series.js";

export function settingsFrom(params) {
  const limited = Number(params.get("smooth") ?? 0.6);
  return {
    smooth: Number.isFinite(limited) ? Math.min(0.999, Math.max(0, limited)) : 0.6,
    x: params.get("x") in AXES ? params.get("x") : "step",
    logx: params.get("logx") === "1",
    logy: params.get("logy") === "1",
    outliers: params.get("outliers") !== "0",
    marks: params.get("marks") !== "0",
    bands: params.get("bands") === "1",
    closed: new Set((params.get("closed") ?? "").split(",").filter(Boolean)),
    large: new Set((params.get("large") ?? "").split(",").filter(Boolean)),
    only: params.get("only") ?? "",
    from: params.get("from") ?? "",
    to: params.get("to") ?? "",
  };
}
