// Numbers, times and sizes for people, and numbers that JSON cannot hold.

const NOT_FINITE = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };
const PREFIXES = ["", "k", "M", "B", "T"];
const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export const NOTHING = "–";

// Servers write NaN and infinities as texts.
export function real(value) {
  if (typeof value === "string" && value in NOT_FINITE) return NOT_FINITE[value];
  return value;
}

export function number(value, digits = 4) {
  const found = real(value);
  if (found === null || found === undefined) return NOTHING;
  if (typeof found !== "number") return String(found);
  if (!Number.isFinite(found)) return Number.isNaN(found) ? "NaN" : found > 0 ? "∞" : "−∞";
  if (found === 0) return "0";
  const size = Math.abs(found);
  if (Number.isInteger(found) && size < 1e7) return found.toLocaleString("en-US");
  if (size < 1e-3 || size >= 1e7) return found.toExponential(digits - 2).replace("e+", "e");
  return size >= 1000
    ? found.toLocaleString("en-US", { maximumFractionDigits: 0 })
    : String(Number(found.toPrecision(digits)));
}

// As many digits in every row of a column, so that they can be compared down the page.
export function fixed(value, digits = 4) {
  const found = real(value);
  if (typeof found !== "number" || !Number.isFinite(found)) return number(found);
  const size = Math.abs(found);
  return size >= 1e-3 && size < 10 ** digits ? found.toPrecision(digits) : number(found, digits);
}

export function whole(value) {
  return typeof value === "number" ? Math.round(value).toLocaleString("en-US") : NOTHING;
}

// 1 234 567 as 1.23 M.
export function count(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return NOTHING;
  if (Math.abs(value) >= 1e15) return value.toExponential(2).replace("e+", "e");
  let size = value;
  let index = 0;
  while (Math.abs(size) >= 1000 && index < PREFIXES.length - 1) {
    size /= 1000;
    index += 1;
  }
  return `${Number(size.toPrecision(3))}${index ? " " + PREFIXES[index] : ""}`;
}

export function bytes(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return NOTHING;
  let size = value;
  let index = 0;
  while (Math.abs(size) >= 1024 && index < BINARY.length - 1) {
    size /= 1024;
    index += 1;
  }
  return `${Number(size.toPrecision(3))} ${BINARY[index]}`;
}

export function percent(value, digits = 1) {
  return typeof value === "number" && Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : NOTHING;
}

export function duration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return NOTHING;
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${seconds < 10 ? Number(Math.max(0, seconds).toPrecision(2)) : total} s`;
  const minutes = Math.floor(total / 60);
  if (minutes < 60) return `${minutes} min ${total % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return NOTHING;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

// Unix seconds or an ISO text as local time.
export function moment(value) {
  const date = typeof value === "number" ? new Date(value * 1000) : new Date(value);
  if (value === null || value === undefined || Number.isNaN(date.getTime())) return NOTHING;
  const two = (part) => String(part).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

// A value of a recipe as YAML would say it.
export function plain(value) {
  if (value === null || value === undefined) return "null";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// The unit of a metric follows from its name.
export function metric(name, value) {
  const found = real(value);
  if (typeof found !== "number") return number(found);
  if (name.endsWith("_bytes")) return bytes(found);
  if (name.endsWith("/mfu")) return percent(found);
  if (name.endsWith("_seconds")) return duration(found);
  if (/tokens(_per_second)?$/.test(name) && Math.abs(found) >= 10000) return count(found);
  return number(found);
}

export function csv(rows) {
  // A cell that a spreadsheet would take for a formula is marked as text.
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
