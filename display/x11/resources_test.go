package x11_test

import "testing"

func TestResources(t *testing.T) {
	_, _, c := server(t, "xvfb")
	set := func(values map[string]string) {
		t.Helper()
		if err := c.SetResources(deadline(t), values); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want string) {
		t.Helper()
		if got, err := c.Resources(deadline(t)); err != nil || got != want {
			t.Errorf("resources = %q, %v; want %q", got, err, want)
		}
	}
	want("")
	set(map[string]string{"Xft.dpi": "144", "Xcursor.theme": "DMZ-Black"})
	want("Xcursor.theme:\tDMZ-Black\nXft.dpi:\t144\n")
	set(map[string]string{"Xft.dpi": "192", "A.b": "1"})
	want("Xcursor.theme:\tDMZ-Black\nA.b:\t1\nXft.dpi:\t192\n")
}
