package x11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math/bits"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/xproto"

	"berth/profiles"
)

// stripBytes is about how much one GetImage asks for: enough that round trips do not count, and so little that the
// server stays responsive for its other clients in between.
const stripBytes = 1 << 20

// stripsAhead is how many are asked for ahead: enough to keep the server busy, and a bound to what a hostile one can
// have us hold, which may answer each with maxReply.
const stripsAhead = 4

// Screenshot returns what is on the screen, without the pointer. All pixels are opaque.
func (c *Conn) Screenshot(ctx context.Context) (*image.RGBA, error) {
	return call(ctx, c, func(x *xgb.Conn) (*image.RGBA, error) {
		const tries = 5 // a resize between GetGeometry and GetImage is answered with BadMatch
		var img *image.RGBA
		var err error
		for range tries {
			if err = ctx.Err(); err != nil {
				return nil, err
			}
			img, err = c.shot(x)
			var match xproto.MatchError
			if !errors.As(err, &match) {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("screenshot: %w", err)
		}
		return img, nil
	})
}

func (c *Conn) shot(x *xgb.Conn) (*image.RGBA, error) {
	r, err := c.bounds(x)
	if err != nil {
		return nil, err
	}
	if r.Dx() < 1 || r.Dy() < 1 || r.Dx() > profiles.MaxWidth || r.Dy() > profiles.MaxHeight { // 65535x65535 would be 17 GB
		return nil, fmt.Errorf("the X server says its screen has %dx%d pixels, at most %dx%d are read",
			r.Dx(), r.Dy(), profiles.MaxWidth, profiles.MaxHeight)
	}
	return c.region(x, r)
}

// region reads a part of the screen, which must lie within it.
func (c *Conn) region(x *xgb.Conn, r image.Rectangle) (*image.RGBA, error) {
	f, err := c.pixels()
	if err != nil {
		return nil, err
	}
	stride := (r.Dx()*f.size + f.pad - 1) / f.pad * f.pad
	rows := max(1, stripBytes/stride)
	var ahead []xproto.GetImageCookie
	ask := func(y int) {
		if y < r.Dy() {
			ahead = append(ahead, xproto.GetImage(x, xproto.ImageFormatZPixmap, xproto.Drawable(c.screen.Root),
				int16(r.Min.X), int16(r.Min.Y+y), uint16(r.Dx()), uint16(min(rows, r.Dy()-y)), 0xffffffff))
		}
	}
	for i := range stripsAhead {
		ask(i * rows)
	}
	img := image.NewRGBA(r)
	for y := 0; y < r.Dy(); y += rows {
		rep, err := ahead[0].Reply()
		ahead = ahead[1:]
		n := min(rows, r.Dy()-y)
		if err == nil && len(rep.Data) != (n*stride+3)&^3 { // the protocol's unit
			err = fmt.Errorf("%d rows came as %d bytes", n, len(rep.Data))
		}
		if err != nil {
			for _, ck := range ahead { // so that no reply is left to arrive
				ck.Reply()
			}
			return nil, err
		}
		ask(y + stripsAhead*rows)
		for row := range n {
			at := (y + row) * img.Stride
			f.convert(img.Pix[at:at+4*r.Dx()], rep.Data[row*stride:])
		}
	}
	return img, nil
}

// format says how the root window's pixels lie in memory.
type format struct {
	size      int // bytes per pixel
	pad       int // rows start at multiples of this, in bytes
	bigEndian bool
	shift     [3]int // of red, green, blue: position and
	width     [3]int // number of bits
}

// pixels finds the format of the root window among those in the connection setup.
func (c *Conn) pixels() (format, error) {
	f := format{bigEndian: c.setup.ImageByteOrder == xproto.ImageOrderMSBFirst}
	for _, pf := range c.setup.PixmapFormats {
		if pf.Depth == c.screen.RootDepth {
			f.size, f.pad = int(pf.BitsPerPixel)/8, int(pf.ScanlinePad)/8
		}
	}
	if f.size < 2 || f.size > 4 || f.pad < 1 {
		return f, fmt.Errorf("depth %d with %d bytes per pixel is not supported", c.screen.RootDepth, f.size)
	}
	for _, d := range c.screen.AllowedDepths {
		for _, v := range d.Visuals {
			if v.VisualId != c.screen.RootVisual {
				continue
			}
			for i, m := range []uint32{v.RedMask, v.GreenMask, v.BlueMask} {
				f.shift[i], f.width[i] = bits.TrailingZeros32(m), bits.OnesCount32(m)
				if f.width[i] < 1 || f.width[i] > 8 {
					return f, fmt.Errorf("visual with mask %#x is not supported", m)
				}
			}
			return f, nil
		}
	}
	return f, errors.New("the root window's visual is unknown")
}

// convert writes the pixels of src to dst, four bytes each, red first, opaque. len(dst) says how many.
func (f format) convert(dst, src []byte) {
	if f.size == 4 && f.width == [3]int{8, 8, 8} && f.shift == [3]int{16, 8, 0} && !f.bigEndian { // nearly every server
		src = src[:len(dst)]
		for i := 0; i+4 <= len(dst); i += 4 {
			d, s := dst[i:i+4:i+4], src[i:i+4:i+4]
			d[0], d[1], d[2], d[3] = s[2], s[1], s[0], 0xff
		}
		return
	}
	for n := range len(dst) / 4 {
		var v uint32
		for b := range f.size {
			at := n*f.size + b
			if f.bigEndian {
				v = v<<8 | uint32(src[at])
			} else {
				v |= uint32(src[at]) << (8 * b)
			}
		}
		for i := range 3 {
			most := uint32(1)<<f.width[i] - 1
			dst[4*n+i] = uint8((v >> f.shift[i] & most) * 255 / most)
		}
		dst[4*n+3] = 0xff
	}
}

// PNG encodes an image, for speed rather than size.
func PNG(img image.Image) ([]byte, error) {
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&b, img); err != nil {
		return nil, fmt.Errorf("png: %w", err)
	}
	return b.Bytes(), nil
}

// Thumbnail scales img down to fit into width x height, keeping its proportions, each pixel the mean of those it
// stands for. An image that fits already is returned as it is.
func Thumbnail(img *image.RGBA, width, height int) *image.RGBA {
	sw, sh := img.Rect.Dx(), img.Rect.Dy()
	if sw <= width && sh <= height || width < 1 || height < 1 {
		return img
	}
	w, h := width, max(1, sh*width/sw)
	if h > height {
		w, h = max(1, sw*height/sh), height
	}
	out := image.NewRGBA(image.Rect(0, 0, w, h))
	sums := make([][3]int, w)
	for y := range h {
		y0, y1 := y*sh/h, max((y+1)*sh/h, y*sh/h+1)
		clear(sums)
		for sy := y0; sy < y1; sy++ {
			row := img.Pix[sy*img.Stride:]
			for x := range w {
				s := &sums[x]
				for sx := x * sw / w; sx < max((x+1)*sw/w, x*sw/w+1); sx++ {
					p := row[4*sx : 4*sx+3 : 4*sx+3]
					s[0] += int(p[0])
					s[1] += int(p[1])
					s[2] += int(p[2])
				}
			}
		}
		for x := range w {
			n := (y1 - y0) * (max((x+1)*sw/w, x*sw/w+1) - x*sw/w)
			p := out.Pix[y*out.Stride+4*x:]
			for i := range 3 {
				p[i] = uint8((sums[x][i] + n/2) / n)
			}
			p[3] = 0xff
		}
	}
	return out
}
