// Numbers as people read them.

const UNITS = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];

export function count(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of UNITS) {
    if (Math.abs(value) >= size * 10) return trimmed(value / size, 1) + unit;
  }
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : trimmed(value, value < 1 ? 2 : 1);
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return trimmed(value * 1e6, 0) + " µs";
  if (value < 1) return trimmed(value * 1e3, value < 0.01 ? 1 : 0) + " ms";
  if (value < 120) return trimmed(value, value < 10 ? 2 : 1) + " s";
  return span(value);
}

export function span(value) {
  if (value === null || value === undefined) return "–";
  const whole = Math.round(value), days = Math.floor(whole / 86400), hours = Math.floor(whole / 3600) % 24;
  const minutes = Math.floor(whole / 60) % 60;
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

export function percent(value) {
  if (value > 0 && value < 0.001) return "< 0.1 %";
  return value === null || value === undefined ? "–" : trimmed(value * 100, value < 0.1 ? 1 : 0) + " %";
}

export function money(value) {
  if (value === null || value === undefined) return "unknown";
  if (value > 0 && value < 0.0001) return "< $0.0001";
  return "$" + (value === 0 || value >= 1 ? value.toFixed(2) : String(Number(value.toPrecision(3))));
}

function trimmed(value, digits) {
  return Number(value.toFixed(digits)).toLocaleString("en", { maximumFractionDigits: digits });
}
