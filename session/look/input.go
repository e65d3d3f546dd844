package look

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/profiles"
)

// inputName is the component of the input method's daemon.
const inputName = "input-method"

// addInputMethod adds the daemon of the plan's input method, from an image of its own.
func addInputMethod(p *profiles.Plan) {
	if _, taken := p.Component(inputName); taken {
		return
	}
	c := profiles.Component{Name: inputName, Provides: []string{"input-method"}, Needs: []string{profiles.WireX11, profiles.WireBus, profiles.WireHome},
		Timeout: profiles.DefaultTimeout, Restart: profiles.RestartAlways, Optional: true, Stop: 2 * time.Second}
	switch p.Locale.InputMethod {
	case "fcitx5":
		c.Image, c.Command = "fcitx5", []string{"fcitx5", "--replace"}
		c.Ready = []profiles.Probe{{Kind: "bus", Arg: "org.fcitx.Fcitx5"}}
	case "ibus":
		c.Image = "ibus"
		c.Command = []string{"sh", "-c", "dconf load / <<'EOF'\n" + ibusSettings(p) + "EOF\nexec ibus-daemon --xim --replace"}
		// It has a bus of its own, and no name on the session's.
		c.Ready = []profiles.Probe{{Kind: "exec", Arg: `[ "$(ibus address)" != "(null)" ]`}}
	}
	for _, o := range p.Components {
		if slices.Contains(o.Provides, "display") || slices.Contains(o.Provides, "bus") {
			c.After = append(c.After, o.Name)
		}
	}
	insert(p, c)
}

// engines are the input methods for a language, the usual one first.
func engines(p *profiles.Plan, names map[string][]string, all []string) []string {
	lang, _, _ := strings.Cut(p.Locale.Lang, ".")
	if e, ok := names[lang]; ok {
		return e
	}
	lang, _, _ = strings.Cut(lang, "_")
	if e, ok := names[lang]; ok {
		return e
	}
	return all
}

var (
	fcitxEngines = map[string][]string{"zh_TW": {"chewing", "pinyin"}, "zh_HK": {"chewing", "pinyin"}, "zh": {"pinyin", "chewing"}, "ja": {"anthy"}, "ko": {"hangul"}}
	ibusEngines  = map[string][]string{"zh": {"libpinyin"}, "ja": {"anthy"}, "ko": {"hangul"}}
)

// fcitxFiles are fcitx5's defaults, below xdg/fcitx5; what a user changes it keeps in the home. The input methods for the
// language follow the keyboard's first layout. The layouts stay the X server's: fcitx5 would overwrite them.
func fcitxFiles(p *profiles.Plan) map[string]string {
	layout := "us"
	if k := p.Locale.Keyboard; len(k) > 0 {
		l, v := splitLayout(k[0])
		layout = strings.TrimSuffix(l+"-"+v, "-")
	}
	ims := engines(p, fcitxEngines, []string{"pinyin", "anthy", "hangul"})
	var l lines
	l.group("Groups/0")
	l.set("Name", "Default")
	l.set("Default Layout", layout)
	l.set("DefaultIM", ims[0])
	for i, im := range append([]string{"keyboard-" + layout}, ims...) {
		l.group(fmt.Sprintf("Groups/0/Items/%d", i))
		l.set("Name", im)
	}
	l.group("GroupOrder")
	l.set("0", "Default")
	var ui lines // of the window of candidates
	if p.Look.Dark != nil && *p.Look.Dark {
		ui.set("Theme", "default-dark")
	} else {
		ui.set("Theme", "default")
	}
	ui.set("Font", p.Look.Font)
	return map[string]string{"profile": l.b.String(), "conf/classicui.conf": ui.b.String(),
		"conf/xcb.conf": "Allow Overriding System XKB Settings=False\n"}
}

// ibusSettings are ibus' settings as `dconf load` reads them.
func ibusSettings(p *profiles.Plan) string {
	layout := "xkb:us::eng"
	if k := p.Locale.Keyboard; len(k) > 0 {
		l, v := splitLayout(k[0])
		layout = "xkb:" + l + ":" + v + ":"
	}
	list := append([]string{layout}, engines(p, ibusEngines, []string{"libpinyin", "anthy", "hangul"})...)
	return "[desktop/ibus/general]\npreload-engines=" + strv(list) + "\nengines-order=" + strv(list) +
		"\nuse-system-keyboard-layout=true\n[desktop/ibus/general/hotkey]\ntriggers=['<Control>space']\n"
}

// strv is a list of strings in GVariant's text format. No string here has a quote in it.
func strv(list []string) string { return "['" + strings.Join(list, "', '") + "']" }
