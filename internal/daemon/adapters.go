package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"berth/assets"
	"berth/display/drivers"
	"berth/display/gateway"
	"berth/display/xauth"
	"berth/orchestrator"
	"berth/orchestrator/images"
	"berth/profiles"
	"berth/session"
	"berth/session/api"
	"berth/session/audio"
	"berth/session/autostart"
	"berth/session/bus"
	"berth/session/export"
	"berth/session/launch"
	"berth/session/look"
	"berth/session/probe"
	"berth/session/systembus"
)

// Plan resolves a profile as caller c sees it: built-in ones, those in /etc/berth/profiles, the caller's own. It starts
// nothing. A path is not read by the daemon, which may read what the caller may not: clients send the text.
func Plan(_ context.Context, c api.Caller, req api.UpRequest) (*profiles.Plan, error) {
	src := profiles.StandardSources(c.Home, c.UID, assets.Profiles)
	if req.Source != "" {
		return dressed(profiles.ResolveText(req.Profile, []byte(req.Source), src, req.Set, infrastructure))
	}
	if strings.ContainsRune(req.Profile, '/') || strings.HasSuffix(req.Profile, ".toml") {
		return nil, fmt.Errorf("profile %q: %w: a file is sent with its text", req.Profile, orchestrator.ErrInvalid)
	}
	return dressed(profiles.Resolve(req.Profile, src, req.Set, infrastructure))
}

// dressed adds to a plan what its look and locale need.
func dressed(p *profiles.Plan, err error) (*profiles.Plan, error) {
	if err == nil {
		look.Extend(p)
	}
	return p, err
}

// PlanHere is Plan for the user of this process, without a daemon: what one would answer, whatever $HOME says.
func PlanHere(ctx context.Context, req api.UpRequest) (api.Plan, error) {
	p, err := Plan(ctx, api.NewCaller(os.Getuid(), os.Getgid()), req)
	if err != nil {
		return api.Plan{}, err
	}
	return *p, nil
}

// infrastructure is what every session has besides its desktop.
func infrastructure(p *profiles.Profile) ([]profiles.Component, error) {
	d, err := drivers.Components(p.Display)
	if err != nil {
		return nil, err
	}
	a, err := audio.Components(p.Audio)
	if err != nil {
		return nil, err
	}
	return slices.Concat(d, a, bus.Components(), systembus.Components(p.SystemBus, p.Locale), launch.Components(p.Apps)), p.CheckImages(images.RecipeNames())
}

// displays is for how many displays the cookie of a session is good: the first, and X servers that its components run inside it.
const displays = 10

// cookie makes the Xauthority file of a new session.
func cookie() ([]byte, error) {
	c := xauth.NewCookie()
	var entries []xauth.Entry
	for n := range displays {
		entries = append(entries, xauth.Wild(n, c))
	}
	return xauth.Marshal(entries...)
}

// doors is session.Gateway on a gateway, and gateway.Sessions on a manager, which is set before either is used.
type doors struct {
	gw      *gateway.Gateway
	manager *session.Manager
}

func (d *doors) Attach(_ context.Context, r session.Remote) (vnc, web string, err error) {
	vnc, err = d.gw.OpenVNC(r.Name, r.Port, r.Exact)
	if err != nil {
		return "", "", err
	}
	return vnc, d.gw.SessionURL(shown(r)), nil
}

func (d *doors) Detach(r session.Remote) { d.gw.CloseSession(shown(r)) }

func (d *doors) List() []gateway.Session {
	var out []gateway.Session
	for _, r := range d.manager.Remotes() {
		out = append(out, shown(r))
	}
	return out
}

func (d *doors) Get(name string) (gateway.Session, bool) {
	r, ok := d.manager.Remote(name)
	return shown(r), ok
}

func (d *doors) Thumbnail(ctx context.Context, name string, maxWidth int) ([]byte, error) {
	return d.manager.Thumbnail(ctx, name, maxWidth)
}

func (d *doors) Resize(ctx context.Context, name string, w, h int) (width, height int, err error) {
	req := api.ResizeRequest{Size: api.Size{Width: w, Height: h}, Nearest: true}
	size, err := d.manager.Resize(ctx, api.Caller{}, name, req)
	return size.Width, size.Height, err
}

func shown(r session.Remote) gateway.Session {
	return gateway.Session{Name: r.Name, ID: r.ID, Profile: r.Profile, State: r.State, User: r.User, UID: r.UID, VNCSocket: r.VNCSocket,
		Password: r.Password, Token: r.Token, Width: r.Width, Height: r.Height, Created: r.Created}
}

// exports is session.Exporter on a cache.
type exports struct {
	*export.Cache
	resolve func(name string) (ref string, err error) // of images as profiles name them
}

func (e exports) Export(ctx context.Context, ref string, app profiles.App) (string, error) {
	dir, _, err := e.Cache.Export(ctx, ref, app)
	return dir, err
}

func (e exports) AutostartOff(ctx context.Context, ref, image string, p *profiles.Plan) ([]profiles.AutostartOff, error) {
	entries, err := e.Cache.Autostart(ctx, ref)
	if err != nil {
		return nil, err
	}
	return autostart.Off(entries, image, p), nil
}

func (e exports) Complete(ctx context.Context, p *profiles.Plan) error {
	var apps []profiles.App
	var reports []export.Report
	for _, app := range p.Apps {
		ref, err := e.resolve(app.Image)
		if err != nil {
			return err
		}
		_, report, err := e.Cache.Export(ctx, ref, app)
		if errors.Is(err, orchestrator.ErrNotFound) {
			continue // not built yet
		}
		if err != nil {
			return err
		}
		apps, reports = append(apps, app), append(reports, report)
	}
	bus, _ := p.Component(p.Owner("bus"))
	p.Claims = export.Claims(apps, reports, bus.Image)
	for _, image := range session.DesktopImages(p) {
		ref, err := e.resolve(image)
		if err != nil {
			return err
		}
		off, err := e.AutostartOff(ctx, ref, image, p)
		if err != nil && !errors.Is(err, orchestrator.ErrNotFound) {
			return err
		}
		p.AutostartOff = append(p.AutostartOff, off...)
	}
	return nil
}

func newProber(t session.Target) session.Prober { return probe.New(probe.Target(t)) }
