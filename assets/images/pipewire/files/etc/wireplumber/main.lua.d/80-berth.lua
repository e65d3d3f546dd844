-- WirePlumber 0.4: there is no hardware to look for, and neither logind nor a portal to ask.
alsa_monitor.enabled = false
libcamera_monitor.enabled = false
v4l2_monitor.enabled = false
default_access.properties["enable-flatpak-portal"] = false
