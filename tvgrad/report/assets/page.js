// Enhances the page: tables that sort, filter and copy; figures; the theme. Nothing is loaded from elsewhere.
const root = document.documentElement;
const dark = () => getComputedStyle(root).colorScheme === "dark"
  || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
const mark = () => root.classList.toggle("dark", dark());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", mark);
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  mark();
});
mark();

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), sign => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = new Blob([await new Response(stream).text()], { type: "text/javascript" });
  const address = URL.createObjectURL(script);
  try {
    return await import(address);
  } finally {
    URL.revokeObjectURL(address);
  }
}

// ---- figures
const style = {
  background: "transparent",
  font: 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif',
  view: { stroke: null },
  axis: { labelColor: "var(--soft)", titleColor: "var(--ink)", gridColor: "var(--line)", domainColor: "var(--line)",
    tickColor: "var(--line)", labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 140 },
  legend: { labelColor: "var(--ink)", titleColor: "var(--soft)", labelFontSize: 12, titleFontWeight: "normal",
    symbolStrokeWidth: 3, symbolSize: 90,
    layout: { bottom: { anchor: "start", direction: "vertical", margin: 2, offset: 12 } } },
  axisX: { grid: false },
  line: { strokeCap: "round", strokeJoin: "round" },
};

async function draw() {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const places = [...document.querySelectorAll("[data-spec]")];
  if (!places.length) return;
  await unpacked("chart-script");
  for (const place of places) {
    const figure = place.closest("figure");
    const words = figure.querySelector("figcaption")?.textContent ?? figure.querySelector("h3").textContent;
    const spec = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", description: words,
      ...specs[place.dataset.spec] };
    await window.vegaEmbed(place, spec, { actions: false, renderer: "svg", config: style, mode: "vega-lite" });
  }
}

// ---- tables
const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
  "|": "\\textbar{}", "<": "\\textless{}", ">": "\\textgreater{}" };
const inLatex = text => text.replace(/[\\~^|<>&%$#_{}]/g, sign => special[sign] ?? "\\" + sign);
const inCsv = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const noFormula = text => /^[=+\-@\t\r]/.test(text) ? "'" + text : text;

// What is shown, in the order shown: heads, and rows of [text, all digits].
function content(api) {
  const heads = api.columns().header().toArray();
  const rows = api.rows({ search: "applied", order: "applied" }).indexes().toArray().map(row =>
    heads.map((_, column) => {
      const cell = api.cell(row, column);
      const text = cell.render("display");
      const all = cell.render("sort");
      const plain = new DOMParser().parseFromString(String(text ?? ""), "text/html").body.textContent;
      return [plain, plain === "" ? "" : String(all ?? plain)];
    }));
  return { heads, rows };
}

function csv(api) {
  const { heads, rows } = content(api);
  const lines = rows.map(row => row.map(([text, all], column) =>
    heads[column].dataset.numeric === "1" ? all : inCsv(noFormula(text))).join(","));
  return [heads.map(head => inCsv(head.dataset.name)).join(","), ...lines].join("\n") + "\n";
}

function latex(api) {
  const { heads, rows } = content(api);
  const numeric = heads.map(head => head.dataset.numeric === "1");
  const lines = rows.map(row => row.map(([text], column) => numeric[column] ? text : inLatex(text)).join(" & ") + " \\\\");
  return ["% packages: amsmath, booktabs, siunitx",
    `\\begin{tabular}{${numeric.map(one => one ? "S" : "l").join("")}}`, "\\toprule",
    heads.map((head, column) => numeric[column] ? `{${head.dataset.latex}}` : head.dataset.latex).join(" & ") + " \\\\",
    "\\midrule", ...lines, "\\bottomrule", "\\end{tabular}", ""].join("\n");
}

async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // pages opened as files may have no clipboard
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1200);
}

const copier = (name, render) => ({ text: name, action: (_, api, node) => copied(render(api), (node[0] ?? node)) });

function settings(table, rows) {
  const heads = [...table.querySelectorAll("th")];
  const many = rows ?? table.tBodies[0].rows;
  const words = heads.map((head, place) => head.dataset.numeric === "1" ? -1 : place).filter(place => place >= 0);
  return {
    order: [],
    autoWidth: false,
    deferRender: true,
    pageLength: 25,
    lengthMenu: [10, 25, 100, 1000],
    paging: many.length > 25,
    info: many.length > 25,
    searching: true,
    columnDefs: [{ targets: words, className: "word", columnControl: many.length > 5 ? [["searchList"]] : [] }],
    layout: {
      topStart: { buttons: [copier("Copy CSV", csv), copier("Copy LaTeX", latex)] },
      topEnd: many.length > 5 ? "search" : null,
      bottomStart: many.length > 25 ? "info" : null,
      bottomEnd: many.length > 25 ? "paging" : null,
    },
    language: { search: "", searchPlaceholder: "Search" },
    // Of several tables, a screen reader tells the pages apart by the table's name.
    drawCallback() {
      const pages = this.api().table().container().querySelectorAll("nav");
      pages.forEach(nav => nav.setAttribute("aria-label", `Pages of ${table.getAttribute("aria-label")}`));
    },
  };
}

const escaped = text => String(text).replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);

function fill(table, $) {
  if (table.dataset.ready) return;
  table.dataset.ready = "1";
  if (!table.dataset.later) {
    $(table).DataTable(settings(table));
    return;
  }
  const rows = JSON.parse(table.closest("details").querySelector("script").textContent);
  const shown = cell => cell === null ? "" : Array.isArray(cell) ? escaped(cell[0]) : escaped(cell);
  const sorted = cell => cell === null ? -Infinity : Array.isArray(cell) ? cell[1] : cell;
  const columns = [...table.querySelectorAll("th")].map((_, place) => ({
    data: row => row[place],
    render: (cell, kind) => kind === "sort" || kind === "type" ? sorted(cell) : shown(cell),
  }));
  $(table).DataTable({ ...settings(table, rows), data: rows, columns });
}

async function enhance() {
  const { jQuery } = await unpacked("table-script");
  const visible = table => !table.closest("details:not([open])");
  const all = () => [...document.querySelectorAll("table.data")].filter(visible).forEach(table => fill(table, jQuery));
  document.querySelectorAll("details").forEach(one => one.addEventListener("toggle", all));
  all();
}

const open = () => document.querySelector(location.hash || "#start")?.closest("details")?.setAttribute("open", "");
addEventListener("hashchange", open);
await Promise.all([draw(), enhance()]);
open();
root.dataset.ready = "1";
