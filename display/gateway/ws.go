package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"berth/session/api"
)

// serveWS carries RFB over a WebSocket (RFC 6455), one stream of bytes in binary messages, as noVNC speaks it. The login
// has authenticated the browser, so RFB's security type is None on both sides.
func (g *Gateway) serveWS(w http.ResponseWriter, r *http.Request, who login, s Session) {
	unavailable := func(err error) {
		g.log.Info("desktop not shown", "session", s.Name, "error", err)
		fail(w, http.StatusServiceUnavailable, api.Error{Code: "unavailable", Message: "the session's VNC server does not answer"})
	}
	ctx, done, err := g.admit(s.Name, who.ID)
	if err != nil {
		unavailable(err)
		return
	}
	defer done()
	server, err := dialSession(ctx, s)
	if err != nil {
		unavailable(err)
		return
	}
	defer server.Close()
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       []string{"binary"}, // what old noVNC and websockify ask for
		InsecureSkipVerify: true,               // sameOrigin has looked at Origin
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	err = g.bridge(ctx, ws, server)
	if !ended(err) && websocket.CloseStatus(err) == -1 {
		g.log.Info("desktop connection ended", "session", s.Name, "from", r.RemoteAddr, "error", err)
	}
}

// bridge serves one browser until either side closes or ctx ends.
func (g *Gateway) bridge(ctx context.Context, ws *websocket.Conn, server *net.UnixConn) error {
	defer ws.CloseNow()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Messages are read as a stream, so their size costs no memory.
	ws.SetReadLimit(-1)
	viewer := websocket.NetConn(ctx, ws, websocket.MessageBinary)

	if err := viewer.SetDeadline(time.Now().Add(g.limits.greet)); err != nil {
		return err
	}
	c, err := greetVersion(viewer)
	if err != nil {
		return err
	}
	if err := errors.Join(c.security(nil), c.result(""), viewer.SetDeadline(time.Time{})); err != nil {
		return err
	}
	g.running.Go(func() { ping(ctx, ws, g.limits.ping, cancel) })
	err = pipe(ctx, viewer, server)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return err
}

// ping finds out about browsers that vanished and keeps proxies from closing a quiet connection.
func ping(ctx context.Context, ws *websocket.Conn, interval time.Duration, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		wait, stop := context.WithTimeout(ctx, interval)
		err := ws.Ping(wait)
		stop()
		if err != nil {
			cancel(err)
			return
		}
	}
}
