{{- define "idiolect.name" -}}
{{- if contains "idiolect" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-idiolect" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "idiolect.selector" -}}
app.kubernetes.io/name: idiolect
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "idiolect.labels" -}}
{{ include "idiolect.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "idiolect.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "idiolect.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "idiolect.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{/* What servers and the migration have in common: image, environment, mounts, rights. */}}
{{- define "idiolect.container" -}}
image: "{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
env:
  - { name: IDIOLECT_HOME, value: /var/lib/idiolect }
  - { name: IDIOLECT_HOST, value: 0.0.0.0 }
  - { name: IDIOLECT_PORT, value: "8080" }
  - { name: IDIOLECT_SECRETS_DIR, value: /run/secrets/idiolect }
  {{- range $name, $value := .Values.settings }}
  {{- if ne (toString $value) "" }}
  - name: IDIOLECT_{{ upper $name }}
    {{- /* Numbers come as floats, and 4194304 would be written 4.194304e+06. */}}
    {{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}
    value: {{ int64 $value | quote }}
    {{- else }}
    value: {{ toString $value | quote }}
    {{- end }}
  {{- end }}
  {{- end }}
  - name: AWS_REGION
    value: {{ .Values.aws.region | quote }}
  {{- with .Values.aws.endpointUrl }}
  - name: AWS_ENDPOINT_URL
    value: {{ . | quote }}
  {{- end }}
  {{- if .Values.aws.allowHttp }}
  - { name: AWS_ALLOW_HTTP, value: "true" }
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - { name: secrets, mountPath: /run/secrets/idiolect, readOnly: true }
  - { name: home, mountPath: /var/lib/idiolect }
  - { name: tmp, mountPath: /tmp }
{{- end -}}

{{- define "idiolect.volumes" -}}
- name: secrets
  secret:
    secretName: {{ .Values.existingSecret }}
    defaultMode: 0440
- name: home
  {{- if .Values.home.existingClaim }}
  persistentVolumeClaim: { claimName: {{ .Values.home.existingClaim }} }
  {{- else }}
  emptyDir: { sizeLimit: {{ .Values.home.sizeLimit }} }
  {{- end }}
- name: tmp
  emptyDir: { medium: Memory, sizeLimit: 256Mi }
{{- end -}}
