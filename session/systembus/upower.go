package systembus

import "github.com/godbus/dbus/v5"

const (
	nameUPower  = "org.freedesktop.UPower"
	pathUPower  = dbus.ObjectPath("/org/freedesktop/UPower")
	ifaceDevice = nameUPower + ".Device"
	pathDevice  = pathUPower + "/devices/DisplayDevice"
)

// upower is org.freedesktop.UPower of a machine that is always plugged in. There is no keyboard backlight and no power
// profile: their objects and names are absent, which hides them in every panel.
type upower struct{ objs []*object }

type history struct {
	Time  uint32
	Value float64
	State uint32
}

type statistic struct{ Value, Accuracy float64 }

func newUPower() *upower {
	keep := func(v any) prop { return live(func() any { return v }) }
	device := map[string]prop{
		"IsPresent": keep(false), "PowerSupply": keep(true),
		"WarningLevel": keep(uint32(1)), "BatteryLevel": keep(uint32(1)), // none
		"IconName": keep("battery-missing-symbolic"),
	}
	for _, n := range []string{"NativePath", "Vendor", "Model", "Serial"} {
		device[n] = keep("")
	}
	for _, n := range []string{"HasHistory", "HasStatistics", "Online", "IsRechargeable"} {
		device[n] = keep(false)
	}
	for _, n := range []string{"Energy", "EnergyEmpty", "EnergyFull", "EnergyFullDesign", "EnergyRate", "Voltage", "Luminosity",
		"Percentage", "Temperature", "Capacity"} {
		device[n] = keep(0.0)
	}
	for _, n := range []string{"Type", "State", "Technology"} { // unknown
		device[n] = keep(uint32(0))
	}
	device["UpdateTime"] = keep(uint64(0))
	device["ChargeCycles"] = keep(int32(-1)) // unknown
	device["TimeToEmpty"], device["TimeToFull"] = keep(int64(0)), keep(int64(0))
	return &upower{[]*object{
		{path: pathUPower, ifaces: []iface{{name: nameUPower, signals: map[string]string{"DeviceAdded": "o", "DeviceRemoved": "o"},
			methods: map[string]any{
				"EnumerateDevices":  func() ([]dbus.ObjectPath, error) { return []dbus.ObjectPath{}, nil },
				"GetDisplayDevice":  func() (dbus.ObjectPath, error) { return pathDevice, nil },
				"GetCriticalAction": func() (string, error) { return "PowerOff", nil },
			}, props: map[string]prop{
				"DaemonVersion": keep("0.99.20"), "OnBattery": keep(false), "LidIsClosed": keep(false), "LidIsPresent": keep(false),
			}}}},
		{path: pathDevice, ifaces: []iface{{name: ifaceDevice, methods: map[string]any{
			"Refresh":       func() error { return nil },
			"GetHistory":    func(string, uint32, uint32) ([]history, error) { return []history{}, nil },
			"GetStatistics": func(string) ([]statistic, error) { return []statistic{}, nil },
		}, props: device}}},
	}}
}

func (u *upower) name() string       { return nameUPower }
func (u *upower) objects() []*object { return u.objs }
