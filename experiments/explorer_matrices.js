// Matrices on canvases: the arrow keys and the pointer move a cursor, whose cell is written to a readout.
function drawMatrices(box, matrices) {
  while (box.children.length > matrices.length) box.lastChild.remove();
  while (box.children.length < matrices.length) addFigure(box);
  const space = box.parentElement.clientWidth || 600;
  matrices.forEach((matrix, number) => {
    const [caption, canvas] = box.children[number].children;
    caption.textContent = matrix.title;
    Object.assign(canvas, {matrix, cursor: null});
    canvas.setAttribute("aria-label", `${matrix.title}: rows are ${matrix.rowAxis}, columns are ${matrix.columnAxis}. The arrow keys move between cells.`);
    layOut(canvas, matrices.length > 1 && space > 560 ? space / 2 - 20 : space);
    paint(canvas);
  });
}
function addFigure(box) {
  const figure = add(box, "figure");
  add(figure, "figcaption");
  const canvas = add(figure, "canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");  // screen readers pass the arrow keys on
  listen(canvas);
}
function layOut(canvas, space) {
  const {rows, columns} = canvas.matrix, context = canvas.getContext("2d");
  const wanted = space > 500 ? 110 : 70;
  context.font = "12px system-ui, sans-serif";
  const width = names => Math.min(wanted, Math.max(...names.map(name => context.measureText(name).width)) + 6);
  const left = width(rows), top = width(columns);
  const isLarge = Math.max(rows.length, columns.length) > 40, [least, most] = isLarge ? [3, 9] : [8, 24];
  const cell = Math.max(least, Math.min(most, Math.floor((space - left - 2) / columns.length)));
  canvas.layout = {left, top, cell, wide: cell >= 8, width: left + cell * columns.length + 1, height: top + cell * rows.length + 1};
}
function paint(canvas) {
  const {rows, columns, value, limit} = canvas.matrix, {left, top, cell, wide, width, height} = canvas.layout;
  const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  canvas.width = width * ratio; canvas.height = height * ratio;
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  context.scale(ratio, ratio);
  const [text, accent, negative, line] = ["--text", "--accent", "--negative", "--line"].map(name => style.getPropertyValue(name).trim());
  for (let row = 0; row < rows.length; row++) for (let column = 0; column < columns.length; column++) {
    const share = value(row, column) / limit;
    context.fillStyle = share < 0 ? negative : accent;
    context.globalAlpha = Math.min(1, Math.abs(share));
    context.fillRect(left + column * cell, top + row * cell, cell, cell);
  }
  context.globalAlpha = 1;
  context.strokeStyle = line;
  context.strokeRect(left + 0.5, top + 0.5, cell * columns.length, cell * rows.length);
  context.fillStyle = text;
  context.font = `${Math.min(12, cell)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const every = wide ? 1 : Math.ceil(12 / cell);
  rows.forEach((name, row) => {
    context.textAlign = "right";
    if (row % every === 0) context.fillText(name, left - 3, top + (row + 0.5) * cell, left - 4);
  });
  columns.forEach((name, column) => {
    if (column % every) return;
    context.save();
    context.translate(left + (column + 0.5) * cell, top - 3);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(name, 0, 0, top - 4);
    context.restore();
  });
  if (canvas.cursor) {
    const [row, column] = canvas.cursor;
    context.strokeStyle = text;
    context.lineWidth = 2;
    context.strokeRect(left + column * cell, top + row * cell, cell, cell);
  }
}
function listen(canvas) {
  const move = (row, column) => {
    const {rows, columns, value, title, readout, rowAxis, columnAxis} = canvas.matrix;
    canvas.cursor = [Math.max(0, Math.min(rows.length - 1, row)), Math.max(0, Math.min(columns.length - 1, column))];
    paint(canvas);
    const [r, c] = canvas.cursor;
    readout.textContent = `${title}: ${format(value(r, c))}\n${rowAxis}: ${isolate(rows[r])}\n${columnAxis}: ${isolate(columns[c])}`;
  };
  canvas.addEventListener("pointermove", event => {
    const {left, top, cell} = canvas.layout;
    const row = Math.floor((event.offsetY - top) / cell), column = Math.floor((event.offsetX - left) / cell);
    if (row >= 0 && column >= 0) move(row, column);
  });
  canvas.addEventListener("pointerleave", () => { canvas.cursor = null; paint(canvas); });
  canvas.addEventListener("blur", () => { canvas.cursor = null; paint(canvas); });
  canvas.addEventListener("keydown", event => {
    const step = {ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1]}[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = canvas.cursor || [-step[0], -step[1]];
    move(row + step[0], column + step[1]);
  });
}
