package audiotest

import (
	"math"
	"testing"
)

func TestFrequency(t *testing.T) {
	for _, want := range []float64{100, 440, 523, 1000, 4000} {
		got, share := Frequency(PCM(WAV(want, 0.1)[44:]), Rate)
		if math.Abs(got-want) > 2 || share < 0.9 {
			t.Errorf("%v Hz: found %v, share %v", want, got, share)
		}
	}
	if hz, share := Frequency(make([]float32, 4800), Rate); hz != 0 || share != 0 {
		t.Errorf("silence: %v, %v", hz, share)
	}
}
