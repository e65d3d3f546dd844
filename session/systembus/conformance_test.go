package systembus

import (
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5/introspect"
)

// upstream is what the real services offer, read from their introspection data: of systemd 252.39-1~deb12u2 what
// systemd-logind, -localed, -hostnamed and -timedated print with --bus-introspect, of upower 0.99.20-2 and
// accountsservice 22.08.8-6 the files in /usr/share/dbus-1/interfaces. Below each interface are its methods as
// NAME(IN)OUT, its signals as NAME!ARGS and its properties as NAME:TYPE, with = behind constant ones and - behind those
// that do not announce changes.
const upstream = `
org.freedesktop.login1.Manager
  GetSession(s)o GetSessionByPID(u)o GetUser(u)o GetUserByPID(u)o GetSeat(s)o ListSessions()a(susso)
  ListUsers()a(uso) ListSeats()a(so) ListInhibitors()a(ssssuu) CreateSession(uusssssussbssa(sv))soshusub
  ReleaseSession(s) ActivateSession(s) ActivateSessionOnSeat(ss) LockSession(s) UnlockSession(s) LockSessions()
  UnlockSessions() KillSession(ssi) KillUser(ui) TerminateSession(s) TerminateUser(u) TerminateSeat(s)
  SetUserLinger(ubb) AttachDevice(ssb) FlushDevices(b) PowerOff(b) PowerOffWithFlags(t) Reboot(b) RebootWithFlags(t)
  Halt(b) HaltWithFlags(t) Suspend(b) SuspendWithFlags(t) Hibernate(b) HibernateWithFlags(t) HybridSleep(b)
  HybridSleepWithFlags(t) SuspendThenHibernate(b) SuspendThenHibernateWithFlags(t) CanPowerOff()s CanReboot()s
  CanHalt()s CanSuspend()s CanHibernate()s CanHybridSleep()s CanSuspendThenHibernate()s ScheduleShutdown(st)
  CancelScheduledShutdown()b Inhibit(ssss)h CanRebootParameter()s SetRebootParameter(s) CanRebootToFirmwareSetup()s
  SetRebootToFirmwareSetup(b) CanRebootToBootLoaderMenu()s SetRebootToBootLoaderMenu(t)
  CanRebootToBootLoaderEntry()s SetRebootToBootLoaderEntry(s) SetWallMessage(sb) SessionNew!so SessionRemoved!so
  UserNew!uo UserRemoved!uo SeatNew!so SeatRemoved!so PrepareForShutdown!b PrepareForSleep!b EnableWallMessages:b-
  WallMessage:s- NAutoVTs:u= KillOnlyUsers:as= KillExcludeUsers:as= KillUserProcesses:b= RebootParameter:s-
  RebootToFirmwareSetup:b- RebootToBootLoaderMenu:t- RebootToBootLoaderEntry:s- BootLoaderEntries:as= IdleHint:b
  IdleSinceHint:t IdleSinceHintMonotonic:t BlockInhibited:s DelayInhibited:s InhibitDelayMaxUSec:t=
  UserStopDelayUSec:t= HandlePowerKey:s= HandlePowerKeyLongPress:s= HandleRebootKey:s= HandleRebootKeyLongPress:s=
  HandleSuspendKey:s= HandleSuspendKeyLongPress:s= HandleHibernateKey:s= HandleHibernateKeyLongPress:s=
  HandleLidSwitch:s= HandleLidSwitchExternalPower:s= HandleLidSwitchDocked:s= HoldoffTimeoutUSec:t= IdleAction:s=
  IdleActionUSec:t= PreparingForShutdown:b- PreparingForSleep:b- ScheduledShutdown:(st)- Docked:b- LidClosed:b-
  OnExternalPower:b- RemoveIPC:b= RuntimeDirectorySize:t= RuntimeDirectoryInodesMax:t= InhibitorsMax:t=
  NCurrentInhibitors:t- SessionsMax:t= NCurrentSessions:t- StopIdleSessionUSec:t=
org.freedesktop.login1.Session
  Terminate() Activate() Lock() Unlock() SetIdleHint(b) SetLockedHint(b) Kill(si) TakeControl(b) ReleaseControl()
  SetType(s) SetDisplay(s) TakeDevice(uu)hb ReleaseDevice(uu) PauseDeviceComplete(uu) SetBrightness(ssu)
  PauseDevice!uus ResumeDevice!uuh Lock! Unlock! Id:s= User:(uo)= Name:s= Timestamp:t= TimestampMonotonic:t= VTNr:u=
  Seat:(so)= TTY:s= Display:s Remote:b= RemoteHost:s= RemoteUser:s= Service:s= Desktop:s= Scope:s= Leader:u=
  Audit:u= Type:s Class:s= Active:b State:s IdleHint:b IdleSinceHint:t IdleSinceHintMonotonic:t LockedHint:b
org.freedesktop.login1.Seat
  Terminate() ActivateSession(s) SwitchTo(u) SwitchToNext() SwitchToPrevious() Id:s= ActiveSession:(so) CanTTY:b=
  CanGraphical:b Sessions:a(so)- IdleHint:b IdleSinceHint:t IdleSinceHintMonotonic:t
org.freedesktop.login1.User
  Terminate() Kill(i) UID:u= GID:u= Name:s= Timestamp:t= TimestampMonotonic:t= RuntimePath:s= Service:s= Slice:s=
  Display:(so) State:s- Sessions:a(so)- IdleHint:b IdleSinceHint:t IdleSinceHintMonotonic:t Linger:b-
org.freedesktop.locale1
  SetLocale(asb) SetVConsoleKeyboard(ssbb) SetX11Keyboard(ssssbb) Locale:as X11Layout:s X11Model:s X11Variant:s
  X11Options:s VConsoleKeymap:s VConsoleKeymapToggle:s
org.freedesktop.hostname1
  SetHostname(sb) SetStaticHostname(sb) SetPrettyHostname(sb) SetIconName(sb) SetChassis(sb) SetDeployment(sb)
  SetLocation(sb) GetProductUUID(b)ay GetHardwareSerial()s Describe()s Hostname:s StaticHostname:s PrettyHostname:s
  DefaultHostname:s= HostnameSource:s IconName:s Chassis:s Deployment:s Location:s KernelName:s= KernelRelease:s=
  KernelVersion:s= OperatingSystemPrettyName:s= OperatingSystemCPEName:s= HomeURL:s= HardwareVendor:s=
  HardwareModel:s= FirmwareVersion:s=
org.freedesktop.timedate1
  SetTime(xbb) SetTimezone(sb) SetLocalRTC(bbb) SetNTP(bb) ListTimezones()as Timezone:s LocalRTC:b CanNTP:b- NTP:b
  NTPSynchronized:b- TimeUSec:t- RTCTimeUSec:t-
org.freedesktop.Accounts.User
  SetUserName(s) SetRealName(s) SetEmail(s) SetLanguage(s) SetXSession(s) SetSession(s) SetSessionType(s)
  SetLocation(s) SetHomeDirectory(s) SetShell(s) SetIconFile(s) SetLocked(b) SetAccountType(i) SetPasswordMode(i)
  SetPassword(ss) SetPasswordHint(s) SetAutomaticLogin(b) GetPasswordExpirationPolicy()xxxxxx
  SetPasswordExpirationPolicy(xxxx) SetUserExpirationPolicy(x) Changed! Uid:t UserName:s RealName:s AccountType:i
  HomeDirectory:s Shell:s Email:s Language:s Session:s SessionType:s XSession:s Location:s LoginFrequency:t
  LoginTime:x LoginHistory:a(xxa{sv})- IconFile:s Saved:b Locked:b PasswordMode:i PasswordHint:s AutomaticLogin:b
  SystemAccount:b LocalAccount:b
org.freedesktop.Accounts
  ListCachedUsers()ao FindUserById(x)o FindUserByName(s)o CreateUser(ssi)o CacheUser(s)o UncacheUser(s)
  DeleteUser(xb) UserAdded!o UserDeleted!o DaemonVersion:s HasNoUsers:b HasMultipleUsers:b AutomaticLoginUsers:ao
org.freedesktop.UPower.Device
  Refresh() GetHistory(suu)a(udu) GetStatistics(s)a(dd) NativePath:s Vendor:s Model:s Serial:s UpdateTime:t Type:u
  PowerSupply:b HasHistory:b HasStatistics:b Online:b Energy:d EnergyEmpty:d EnergyFull:d EnergyFullDesign:d
  EnergyRate:d Voltage:d ChargeCycles:i Luminosity:d TimeToEmpty:x TimeToFull:x Percentage:d Temperature:d
  IsPresent:b State:u IsRechargeable:b Capacity:d Technology:u WarningLevel:u BatteryLevel:u IconName:s
org.freedesktop.UPower
  EnumerateDevices()ao GetDisplayDevice()o GetCriticalAction()s DeviceAdded!o DeviceRemoved!o DaemonVersion:s
  OnBattery:b LidIsClosed:b LidIsPresent:b
`

// words describes an interface as upstream does.
func words(i introspect.Interface) []string {
	var out []string
	for _, m := range i.Methods {
		var in, res string
		for _, a := range m.Args {
			if a.Direction == "out" {
				res += a.Type
			} else {
				in += a.Type
			}
		}
		out = append(out, m.Name+"("+in+")"+res)
	}
	for _, s := range i.Signals {
		var args string
		for _, a := range s.Args {
			args += a.Type
		}
		out = append(out, s.Name+"!"+args)
	}
	for _, p := range i.Properties {
		out = append(out, p.Name+":"+p.Type+map[string]string{"true": "", "const": "=", "false": "-"}[p.Annotations[0].Value])
	}
	return out
}

// TestConformance: all that is offered is upstream's, with its types, and what desktops ask for is there.
func TestConformance(t *testing.T) {
	want := map[string][]string{}
	var name string
	for l := range strings.Lines(strings.TrimSpace(upstream)) {
		if !strings.HasPrefix(l, " ") {
			name = strings.TrimSpace(l)
			continue
		}
		want[name] = append(want[name], strings.Fields(l)...)
	}
	seen := map[string]bool{}
	for path, o := range newBed(t).tree {
		for _, i := range o.ifaces {
			seen[i.name] = true
			got := words(i.introspect())
			for _, w := range got {
				if !slices.Contains(want[i.name], w) {
					t.Errorf("%s: %s %s is not upstream's", path, i.name, w)
				}
			}
			for _, w := range want[i.name] {
				if !slices.Contains(got, w) && !slices.Contains(leftOut, i.name+" "+w) {
					t.Errorf("%s: %s %s is missing and not among what is left out", path, i.name, w)
				}
			}
		}
	}
	for name := range want {
		if !seen[name] {
			t.Errorf("nobody offers %s", name)
		}
	}
}

// leftOut are those of upstream's that no desktop calls without being root, or that have no meaning in a container.
var leftOut = []string{
	"org.freedesktop.login1.Manager CreateSession(uusssssussbssa(sv))soshusub",
	"org.freedesktop.login1.Manager ReleaseSession(s)",
	"org.freedesktop.login1.Manager AttachDevice(ssb)",
	"org.freedesktop.login1.Manager FlushDevices(b)",
	"org.freedesktop.login1.Manager ScheduleShutdown(st)",
	"org.freedesktop.login1.Manager CancelScheduledShutdown()b",
	"org.freedesktop.login1.Manager SetRebootParameter(s)",
	"org.freedesktop.login1.Manager SetRebootToFirmwareSetup(b)",
	"org.freedesktop.login1.Manager SetRebootToBootLoaderMenu(t)",
	"org.freedesktop.login1.Manager SetRebootToBootLoaderEntry(s)",
	"org.freedesktop.login1.Manager SetWallMessage(sb)",
	"org.freedesktop.login1.Manager EnableWallMessages:b-",
	"org.freedesktop.login1.Manager WallMessage:s-",
	"org.freedesktop.login1.Manager RuntimeDirectorySize:t=",
	"org.freedesktop.login1.Manager RuntimeDirectoryInodesMax:t=",
	"org.freedesktop.login1.Manager StopIdleSessionUSec:t=",
	"org.freedesktop.hostname1 GetHardwareSerial()s",
	"org.freedesktop.hostname1 FirmwareVersion:s=",
}
