// The two rulers of the article's first slice.
DATA.rulers.forEach((ruler, number) => {
  const svg = $(`ruler-${number}`);
  const draw = (patch) => {
    const one = { name: "arange", ruler, edges: DATA.edges };
    drawRuler(svg, $(`ruler-${number}-words`), { side: 70, one, two: null, patch, pick: draw });
    rulerKeys(svg, ruler.n, patch, draw);
  };
  draw(2);
});
