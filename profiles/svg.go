package profiles

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode"
)

// SVG writes the plan as a picture: time goes from left to right, every box is a component, every line a wait. It follows
// the viewer's light or dark scheme and needs no script and no font of its own.
//
// The layout is the layered one of Sugiyama, Tagawa and Toda (1981): layers by the longest path, stand-ins where a line
// passes a layer, orders by barycentres, heights by least squares.
func (p *Plan) SVG(w io.Writer) error {
	d := layOut(p)
	var b bytes.Buffer
	d.draw(&b, p)
	_, err := w.Write(b.Bytes())
	return err
}

// All in pixels.
const (
	boxHeight   = 64.0
	boxGap      = 20.0 // between boxes of a layer
	lineGap     = 14.0 // between a stand-in and its neighbour
	layerGap    = 72.0
	margin      = 28.0
	headHeight  = 58.0
	legendSpace = 44.0
	minBoxWidth = 132.0
	maxChars    = 36
	accent      = 5.0
)

// vertex is a component, or the stand-in for a line in a layer it passes.
type vertex struct {
	comp     *Component // nil of a stand-in
	layer    int
	x, y     float64 // left edge and vertical centre
	width    float64
	before   []*vertex // in the layer to the left
	behind   []*vertex // in the layer to the right
	position int
}

type drawing struct {
	layers        [][]*vertex
	lines         [][]*vertex // from a component through stand-ins to a component
	width, height float64
}

func layOut(p *Plan) *drawing {
	after := p.reduced()
	byName := map[string]*vertex{}
	d := &drawing{}
	put := func(v *vertex) {
		for len(d.layers) <= v.layer {
			d.layers = append(d.layers, nil)
		}
		v.position = len(d.layers[v.layer])
		d.layers[v.layer] = append(d.layers[v.layer], v)
	}
	for i := range p.Components {
		c := &p.Components[i]
		v := &vertex{comp: c, width: boxWidth(c)}
		for _, a := range after[c.Name] {
			v.layer = max(v.layer, byName[a].layer+1)
		}
		byName[c.Name] = v
		put(v)
	}
	// The lines of one component share their stand-ins, so that they run as one until they part.
	trunks := map[*vertex][]*vertex{}
	link := func(a, b *vertex) {
		if !slices.Contains(a.behind, b) {
			a.behind, b.before = append(a.behind, b), append(b.before, a)
		}
	}
	for _, c := range p.Components {
		to := byName[c.Name]
		for _, a := range after[c.Name] {
			from := byName[a]
			trunk := trunks[from]
			for l := from.layer + 1 + len(trunk); l < to.layer; l++ {
				s := &vertex{layer: l}
				put(s)
				trunk = append(trunk, s)
			}
			trunks[from] = trunk
			line := append([]*vertex{from}, trunk[:max(0, to.layer-from.layer-1)]...)
			line = append(line, to)
			for i := 1; i < len(line); i++ {
				link(line[i-1], line[i])
			}
			d.lines = append(d.lines, line)
		}
	}
	d.order()
	d.place()
	return d
}

// order sorts every layer so that few lines cross: by the mean position of the neighbours, to and fro, keeping the best.
func (d *drawing) order() {
	best, bestCount := d.snapshot(), d.crossings()
	for sweep := range 12 {
		near := func(v *vertex) []*vertex { return v.before }
		layers := slices.Clone(d.layers)
		if sweep%2 == 1 {
			near = func(v *vertex) []*vertex { return v.behind }
			slices.Reverse(layers)
		}
		for _, layer := range layers {
			centre := func(v *vertex) float64 {
				if len(near(v)) == 0 {
					return float64(v.position)
				}
				sum := 0.0
				for _, n := range near(v) {
					sum += float64(n.position)
				}
				return sum / float64(len(near(v)))
			}
			slices.SortStableFunc(layer, func(a, b *vertex) int { return cmp.Compare(centre(a), centre(b)) })
			for i, v := range layer {
				v.position = i
			}
		}
		if n := d.crossings(); n < bestCount {
			best, bestCount = d.snapshot(), n
		}
	}
	for i, layer := range best {
		copy(d.layers[i], layer)
		for j, v := range layer {
			v.position = j
		}
	}
}

func (d *drawing) snapshot() [][]*vertex {
	out := make([][]*vertex, len(d.layers))
	for i, l := range d.layers {
		out[i] = slices.Clone(l)
	}
	return out
}

func (d *drawing) crossings() int {
	count := 0
	for _, layer := range d.layers {
		type pair struct{ a, b int }
		var pairs []pair
		for _, v := range layer {
			for _, n := range v.behind {
				pairs = append(pairs, pair{v.position, n.position})
			}
		}
		for i, p := range pairs {
			for _, q := range pairs[:i] {
				if (p.a-q.a)*(p.b-q.b) < 0 {
					count++
				}
			}
		}
	}
	return count
}

// place computes coordinates. Heights are found by moving each layer as near to its neighbours' as its order allows.
func (d *drawing) place() {
	x := margin
	for _, layer := range d.layers {
		width, y := minBoxWidth, 0.0
		for _, v := range layer {
			width = max(width, v.width)
		}
		for i, v := range layer {
			if i > 0 {
				y += separation(layer[i-1], v)
			}
			v.x, v.y = x, y
			v.width = width
		}
		x += width + layerGap
	}
	d.width = x - layerGap + margin
	for sweep := range 24 {
		layers := slices.Clone(d.layers)
		if sweep%2 == 1 {
			slices.Reverse(layers)
		}
		for _, layer := range layers {
			want := make([]float64, len(layer))
			weight := make([]float64, len(layer))
			for i, v := range layer {
				want[i], weight[i] = v.y, 0.05
				sum, n := 0.0, 0.0
				for _, o := range append(slices.Clip(v.before), v.behind...) {
					k := 1.0
					if v.comp == nil && o.comp == nil {
						k = 4 // long lines are straight
					}
					sum, n = sum+k*o.y, n+k
				}
				if n > 0 {
					want[i], weight[i] = sum/n, n
				}
			}
			spread(layer, want, weight)
		}
	}
	top, bottom := math.Inf(1), math.Inf(-1)
	for _, layer := range d.layers {
		for _, v := range layer {
			top, bottom = min(top, v.y-boxHeight/2), max(bottom, v.y+boxHeight/2)
		}
	}
	if len(d.layers) == 0 {
		top, bottom = 0, 0
		d.width = 2 * margin
	}
	shift := margin + headHeight - top
	for _, layer := range d.layers {
		for _, v := range layer {
			v.y = math.Round(v.y + shift)
		}
	}
	d.height = math.Ceil(bottom + shift + legendSpace + margin/2)
}

func separation(a, b *vertex) float64 {
	if a.comp != nil && b.comp != nil {
		return boxHeight + boxGap
	}
	if a.comp == nil && b.comp == nil {
		return lineGap
	}
	return boxHeight/2 + lineGap
}

// spread gives the vertices of a layer the heights nearest to want, by weighted least squares, with their separations
// kept: isotonic regression on the heights less the separations, by pooling adjacent violators.
func spread(layer []*vertex, want, weight []float64) {
	type pool struct {
		sum, weight float64
		n           int
	}
	var pools []pool
	offset := make([]float64, len(layer))
	for i := range layer {
		if i > 0 {
			offset[i] = offset[i-1] + separation(layer[i-1], layer[i])
		}
		pools = append(pools, pool{weight[i] * (want[i] - offset[i]), weight[i], 1})
		for len(pools) > 1 {
			a, b := pools[len(pools)-2], pools[len(pools)-1]
			if a.sum/a.weight <= b.sum/b.weight {
				break
			}
			pools = append(pools[:len(pools)-2], pool{a.sum + b.sum, a.weight + b.weight, a.n + b.n})
		}
	}
	i := 0
	for _, p := range pools {
		for range p.n {
			layer[i].y = p.sum/p.weight + offset[i]
			i++
		}
	}
}

// textWidth estimates the width of s in a sans-serif font of the given size.
func textWidth(s string, size float64) float64 {
	w := 0.0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana):
			w += 1
		case strings.ContainsRune("ilj.,:;'|!ftI-", r):
			w += 0.36
		case strings.ContainsRune("mwMW@", r):
			w += 0.86
		default:
			w += 0.57
		}
	}
	return w * size
}

func boxWidth(c *Component) float64 {
	w := textWidth(clip(c.Name, maxChars), 14)*1.06 + 16
	w = max(w, textWidth(clip(c.Image, maxChars), 11.5), textWidth(readyText(c), 11.5))
	return math.Ceil(max(minBoxWidth, w+2*accent+24))
}

func readyText(c *Component) string {
	if len(c.Ready) == 0 {
		return "ready at once"
	}
	return clip("ready: "+strings.Join(probeTexts(c.Ready), ", "), maxChars)
}

// kinds of components, by their first role, with the colour of each.
var svgKinds = []struct{ class, label, colour string }{
	{"display", "display", "#3b82f6"},
	{"bus", "bus", "#f59e0b"},
	{"audio", "sound", "#10b981"},
	{"desktop", "desktop", "#8b5cf6"},
	{"other", "other", "#94a3b8"},
}

func kindOf(c *Component) string {
	if len(c.Provides) == 0 {
		// Helpers of a server carry its image: wireplumber, pipewire-pulse.
		for _, k := range []string{"pipewire", "pulse"} {
			if strings.Contains(c.Image, k) || strings.Contains(c.Name, k) {
				return "audio"
			}
		}
		return "other"
	}
	switch c.Provides[0] {
	case "display", "vnc":
		return "display"
	case "bus", "audio":
		return c.Provides[0]
	case "app":
		return "other"
	}
	return "desktop"
}

const svgStyle = `text{font-family:system-ui,"Segoe UI","Noto Sans","DejaVu Sans",sans-serif;fill:#0f172a}
.bg{fill:#ffffff}.box{fill:#f8fafc;stroke:#cbd5e1;stroke-width:1.2}.optional{stroke-dasharray:5 4}
.title{font-size:18px;font-weight:600}.muted{fill:#64748b}.note{font-size:12.5px}
.name{font-size:14px;font-weight:600}.small{font-size:11.5px}
.line{fill:none;stroke:#94a3b8;stroke-width:1.6}.tip{fill:#94a3b8}
.badge{fill:#e2e8f0}
@media (prefers-color-scheme:dark){text{fill:#e2e8f0}.bg{fill:#0f172a}.box{fill:#1e293b;stroke:#475569}
.muted{fill:#94a3b8}.line{stroke:#64748b}.tip{fill:#64748b}.badge{fill:#334155}}
`

func (d *drawing) draw(b *bytes.Buffer, p *Plan) {
	used := map[string]bool{}
	optional := false
	for i := range p.Components {
		used[kindOf(&p.Components[i])] = true
		optional = optional || p.Components[i].Optional
	}
	subtitle := clip(p.Description, 110)
	width := max(d.width, 2*margin+textWidth(p.Profile, 20), 2*margin+textWidth(subtitle, 12.5), 420)

	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %g %g" role="img">`+"\n", width, d.height, width, d.height)
	fmt.Fprintf(b, "<title>%s</title>\n<style>\n%s", escape(p.Profile), svgStyle)
	for _, k := range svgKinds {
		fmt.Fprintf(b, ".k-%s{fill:%s}", k.class, k.colour)
	}
	b.WriteString("\n</style>\n")
	fmt.Fprintf(b, `<rect class="bg" width="%g" height="%g"/>`+"\n", width, d.height)
	fmt.Fprintf(b, `<text class="title" x="%g" y="%g">%s</text>`+"\n", margin, margin+14, escape(p.Profile))
	if subtitle != "" {
		fmt.Fprintf(b, `<text class="muted note" x="%g" y="%g">%s</text>`+"\n", margin, margin+34, escape(subtitle))
	}

	for _, line := range d.lines {
		d.drawLine(b, line)
	}
	for _, layer := range d.layers {
		for _, v := range layer {
			if v.comp != nil {
				drawBox(b, v, v.comp.Name == p.Session)
			}
		}
	}

	x, y := margin, d.height-margin+6
	for _, k := range svgKinds {
		if !used[k.class] {
			continue
		}
		fmt.Fprintf(b, `<rect class="k-%s" x="%g" y="%g" width="10" height="10" rx="3"/><text class="muted small" x="%g" y="%g">%s</text>`+"\n",
			k.class, x, y-9, x+16, y, k.label)
		x += 16 + math.Ceil(textWidth(k.label, 11.5)) + 20
	}
	if optional {
		fmt.Fprintf(b, `<rect class="box optional" x="%g" y="%g" width="18" height="10" rx="3"/><text class="muted small" x="%g" y="%g">optional</text>`+"\n",
			x, y-9, x+24, y)
	}
	b.WriteString("</svg>\n")
}

func drawBox(b *bytes.Buffer, v *vertex, session bool) {
	c := v.comp
	class := "box"
	if c.Optional {
		class += " optional"
	}
	x, y := v.x, v.y-boxHeight/2
	fmt.Fprintf(b, `<g><title>%s</title>`, escape(CommandText(c.Command)))
	fmt.Fprintf(b, `<rect class="%s" x="%g" y="%g" width="%g" height="%g" rx="8"/>`, class, x, y, v.width, boxHeight)
	// The accent is a bar with the box's own round corners on its left.
	fmt.Fprintf(b, `<path class="k-%s" d="M%g %ga8 8 0 0 1 8 -8h-2.4v%gh2.4a8 8 0 0 1 -8 -8z"/>`, kindOf(c), x, y+8, boxHeight)
	tx := x + accent + 11
	fmt.Fprintf(b, `<text class="name" x="%g" y="%g">%s</text>`, tx, y+22, escape(clip(c.Name, maxChars)))
	if session {
		nx := tx + math.Ceil(textWidth(clip(c.Name, maxChars), 14)*1.06) + 11
		fmt.Fprintf(b, `<circle class="k-%s" cx="%g" cy="%g" r="3.5"><title>its end is the log-out</title></circle>`, kindOf(c), nx, y+17.5)
	}
	fmt.Fprintf(b, `<text class="muted small" x="%g" y="%g">%s</text>`, tx, y+39, escape(clip(c.Image, maxChars)))
	fmt.Fprintf(b, `<text class="muted small" x="%g" y="%g">%s</text></g>`+"\n", tx, y+54, escape(readyText(c)))
}

// drawLine draws a wait, smooth through its stand-ins, with an arrow's tip at its end.
func (d *drawing) drawLine(b *bytes.Buffer, line []*vertex) {
	from, to := line[0], line[len(line)-1]
	px, py := from.x+from.width, from.y+port(from.behind, line[1])
	fmt.Fprintf(b, `<path class="line" d="M%g %g`, px, py)
	for i, v := range line[1:] {
		x, y := v.x, v.y
		if v == to {
			y += port(to.before, line[i])
			x -= 7 // room for the tip
		}
		bend := math.Max((x-px)/2, 24)
		fmt.Fprintf(b, "C%g %g %g %g %g %g", px+bend, py, x-bend, y, x, y)
		px, py = x, y
		if v != to {
			px = v.x + v.width
			fmt.Fprintf(b, "H%g", px)
		}
	}
	fmt.Fprintf(b, `"/><path class="tip" d="M%g %gl-8 -4v8z"/>`+"\n", to.x-0.6, py)
}

// port is where, from the middle of its box, the line to other ends: lines that share a side fan out in the order of
// their other ends.
func port(side []*vertex, other *vertex) float64 {
	sorted := slices.Clone(side)
	slices.SortStableFunc(sorted, func(a, b *vertex) int { return cmp.Compare(a.y, b.y) })
	step := min(12, (boxHeight-20)/float64(max(len(side)-1, 1)))
	i := slices.Index(sorted, other)
	return math.Round((float64(i) - float64(len(sorted)-1)/2) * step)
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a Buffer takes everything
	return b.String()
}
